{{/* The model repository of a pod, at /repository: where it comes from, and what copies it. */}}

{{- define "coserve.repository.path" -}}
{{- $path := "/repository" -}}
{{- with .Values.repository.folder }}{{ $path = printf "/repository/%s" (trimAll "/" .) }}{{ end -}}
{{- $path -}}
{{- end }}

{{- define "coserve.repository.volume" -}}
{{- $repository := .Values.repository }}
- name: repository
{{- if eq $repository.source "volume" }}
  {{- if not $repository.volume }}
  {{- fail "repository.source is volume: set repository.volume to a volume of a pod, such as {persistentVolumeClaim: {claimName: models, readOnly: true}}" }}
  {{- end }}
  {{- toYaml $repository.volume | nindent 2 }}
{{- else if and (eq $repository.source "image") (eq $repository.image.mode "mount") }}
  image:
    reference: {{ include "coserve.image" $repository.image | quote }}
    pullPolicy: {{ $repository.image.pullPolicy }}
{{- else }}
  emptyDir:
    {{- with $repository.sizeLimit }}
    sizeLimit: {{ . | quote }}
    {{- else }}
    {}
    {{- end }}
{{- end }}
{{- end }}

{{- define "coserve.repository.mount" -}}
- name: repository
  mountPath: /repository
  readOnly: true
{{- end }}

{{/* Init containers that fill the volume. */}}
{{- define "coserve.repository.copy" -}}
{{- $repository := .Values.repository }}
{{- if and (eq $repository.source "image") (eq $repository.image.mode "copy") }}
- name: repository
  image: {{ include "coserve.image" $repository.image | quote }}
  imagePullPolicy: {{ $repository.image.pullPolicy }}
  command: [cp, -R, {{ printf "%s/." (trimSuffix "/" $repository.image.path) | quote }}, /repository]
  {{- include "coserve.repository.copier" . | nindent 2 }}
{{- else if eq $repository.source "bucket" }}
- name: repository
  image: {{ include "coserve.image" $repository.bucket.image | quote }}
  imagePullPolicy: {{ $repository.bucket.image.pullPolicy }}
  args:
    - copy
    - {{ include "coserve.repository.remote" . | quote }}
    - /repository
    - --stats-one-line-date
    - --error-on-no-transfer
  {{- include "coserve.repository.copier" . | nindent 2 }}
  env:
    {{- $default := dict
      "HOME" "/tmp"
      "RCLONE_CONFIG" "/tmp/rclone.conf"
      "RCLONE_S3_PROVIDER" "AWS"
      "RCLONE_S3_ENV_AUTH" "true"
      "RCLONE_GCS_ENV_AUTH" "true"
      "RCLONE_AZUREBLOB_ENV_AUTH" "true" }}
    {{- range $name, $value := merge (deepCopy $repository.bucket.env) $default }}
    - name: {{ $name }}
      value: {{ include "coserve.text" $value | quote }}
    {{- end }}
  {{- with $repository.bucket.secret }}
  envFrom:
    - secretRef:
        name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "coserve.repository.copier" -}}
securityContext:
  {{- include "coserve.containerSecurity" . | nindent 2 }}
resources:
  {{- toYaml .Values.repository.copyResources | nindent 2 }}
volumeMounts:
  - name: repository
    mountPath: /repository
  - name: tmp
    mountPath: /tmp
{{- end }}

{{/* rclone's name of the bucket. */}}
{{- define "coserve.repository.remote" -}}
{{- $url := .Values.repository.bucket.url -}}
{{- if hasPrefix "s3://" $url -}}
:s3:{{ trimPrefix "s3://" $url }}
{{- else if hasPrefix "gs://" $url -}}
:gcs:{{ trimPrefix "gs://" $url }}
{{- else if hasPrefix "azure://" $url -}}
:azureblob:{{ trimPrefix "azure://" $url }}
{{- else -}}
{{- fail "repository.source is bucket: set repository.bucket.url to s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or azure://CONTAINER/FOLDER" -}}
{{- end -}}
{{- end }}
