{{/* What the gateway's container is told and asked. */}}

{{- define "coserve.gateway.usesTriton" -}}
{{- if or .Values.triton.enabled .Values.triton.url }}true{{ end }}
{{- end }}

{{/* Seconds from SIGTERM to SIGKILL: the drain delay, the deadline, and what the gateway adds to them. */}}
{{- define "coserve.gateway.grace" -}}
{{- $deadline := default 10000 .Values.settings.deadline_ms }}
{{- add (ceil (divf (addf .Values.drainDelayMs $deadline) 1000)) 5 }}
{{- end }}

{{- define "coserve.gateway.ownEnv" -}}
- name: COSERVE_DRAIN_DELAY_MS
  value: {{ include "coserve.text" .Values.drainDelayMs | quote }}
{{- if .Values.triton.enabled }}
- name: COSERVE_ENGINE
  value: triton
- name: COSERVE_TRITON_URL
  value: "{{ include "coserve.triton.fullname" . }}:8001"
{{- else if .Values.triton.url }}
- name: COSERVE_ENGINE
  value: triton
- name: COSERVE_TRITON_URL
  value: {{ .Values.triton.url | quote }}
{{- else }}
- name: COSERVE_ENGINE
  value: {{ .Values.engine }}
- name: COSERVE_REPOSITORY
  value: {{ include "coserve.repository.path" . | quote }}
{{- end }}
{{- if include "coserve.anonymous" . }}
- name: COSERVE_ALLOW_PUBLIC
  value: "true"
{{- end }}
{{- with .Values.auth.apiKeys.secret }}
- name: COSERVE_API_KEYS_FILE
  value: {{ printf "/run/coserve/keys/%s" $.Values.auth.apiKeys.key | quote }}
{{- end }}
{{- if .Values.tls.secret }}
- name: COSERVE_TLS_CERTIFICATE
  value: /run/coserve/tls/tls.crt
- name: COSERVE_TLS_KEY
  value: /run/coserve/tls/tls.key
{{- end }}
{{- if .Values.tls.clientAuthorities.secret }}
- name: COSERVE_TLS_CLIENT_AUTHORITIES
  value: {{ printf "/run/coserve/authorities/%s" .Values.tls.clientAuthorities.key | quote }}
- name: COSERVE_HEALTHCHECK_CERTIFICATE
  value: /run/coserve/probe/tls.crt
- name: COSERVE_HEALTHCHECK_KEY
  value: /run/coserve/probe/tls.key
{{- end }}
{{- if .Values.grpc.enabled }}
- name: COSERVE_GRPC_PORT
  value: "8001"
{{- end }}
{{- range $name, $value := .Values.settings }}
- name: COSERVE_{{ upper $name }}
  value: {{ include "coserve.text" $value | quote }}
{{- end }}
{{- end }}

{{- define "coserve.gateway.env" -}}
{{- include "coserve.gateway.ownEnv" . | trim }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (list . "/readyz") */}}
{{- define "coserve.gateway.probe" -}}
{{- $root := first . }}
{{- if $root.Values.tls.clientAuthorities.secret }}
# The kubelet has no client certificate.
exec:
  command: [python, /opt/coserve/healthcheck.py, {{ last . }}]
{{- else }}
httpGet:
  path: {{ last . }}
  port: http
  {{- if $root.Values.tls.secret }}
  scheme: HTTPS
  {{- end }}
{{- end }}
{{- end }}

{{/* Secrets: (list NAME SECRET) of each one that is mounted below /run/coserve. */}}
{{- define "coserve.gateway.secrets" -}}
{{- $found := dict }}
{{- with .Values.auth.apiKeys.secret }}{{ $_ := set $found "keys" . }}{{ end }}
{{- with .Values.tls.secret }}{{ $_ := set $found "tls" . }}{{ end }}
{{- with .Values.tls.clientAuthorities.secret }}{{ $_ := set $found "authorities" . }}{{ end }}
{{- if .Values.tls.clientAuthorities.secret }}{{ $_ := set $found "probe" .Values.tls.probeSecret }}{{ end }}
{{- toYaml $found }}
{{- end }}
