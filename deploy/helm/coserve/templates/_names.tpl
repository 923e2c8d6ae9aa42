{{/* Names and labels. */}}

{{- define "coserve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 56 characters, since "-triton" follows. */}}
{{- define "coserve.fullname" -}}
{{- $name := include "coserve.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 56 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 56 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 56 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "coserve.triton.fullname" -}}
{{- include "coserve.fullname" . }}-triton
{{- end }}

{{- define "coserve.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "coserve.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Labels that select the pods of one tier; (list . "gateway") */}}
{{- define "coserve.selector" -}}
{{- $root := first . -}}
app.kubernetes.io/name: {{ include "coserve.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{- define "coserve.labels" -}}
{{- $root := first . -}}
{{ include "coserve.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "coserve.image" -}}
{{- .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}
