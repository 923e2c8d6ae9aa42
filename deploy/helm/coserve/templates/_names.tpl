{{/* Names and labels. */}}

{{- define "coserve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimAll "-." }}
{{- end }}

{{/* At most 56 characters, since "-triton" follows. */}}
{{- define "coserve.fullname" -}}
{{- $name := include "coserve.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 56 | trimAll "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 56 | trimAll "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 56 | trimAll "-" }}
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
app.kubernetes.io/name: {{ include "coserve.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
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
{{- if not (or .tag .digest) }}
{{- fail (printf "the image %s has neither a tag nor a digest: set one" .repository) }}
{{- end }}
{{- .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}
