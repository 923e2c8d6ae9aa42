{{/* Scaling and disruption of one tier: (dict "root" . "tier" NAME "component" COMPONENT "values" VALUES). */}}

{{- define "coserve.budget" -}}
{{- if .values.podDisruptionBudget.enabled }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .tier }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "coserve.labels" (list .root .component) | nindent 4 }}
spec:
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  # Pods that are not ready do not keep a node from being drained.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "coserve.selector" (list .root .component) | nindent 6 }}
{{- end }}
{{- end }}

{{/* The share of requests' time that they wait for a turn, over all pods: 0 without requests. */}}
{{- define "coserve.queueShare" -}}
{{- $labels := printf "namespace=%q,service=%q" .root.Release.Namespace .tier -}}
{{- $waited := "coserve_queue_duration_seconds_sum" -}}
{{- $total := "coserve_request_duration_seconds_sum" -}}
{{- if eq .component "triton" -}}
{{- $waited = "nv_inference_queue_duration_us" -}}
{{- $total = "nv_inference_request_duration_us" -}}
{{- end -}}
sum(rate({{ $waited }}{ {{- $labels -}} }[1m])) / (sum(rate({{ $total }}{ {{- $labels -}} }[1m])) > 0) or vector(0)
{{- end }}

{{- define "coserve.autoscaler" -}}
{{- $scaling := .values.autoscaling }}
{{- if $scaling.enabled }}
{{- if eq $scaling.kind "keda" }}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .tier }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "coserve.labels" (list .root .component) | nindent 4 }}
spec:
  scaleTargetRef:
    name: {{ .tier }}
  minReplicaCount: {{ $scaling.minReplicas }}
  maxReplicaCount: {{ $scaling.maxReplicas }}
  {{- with $scaling.behavior }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- toYaml . | nindent 8 }}
  {{- end }}
  triggers:
    {{- if eq $scaling.metric "cpu" }}
    - type: cpu
      metricType: Utilization
      metadata:
        value: {{ $scaling.cpu | quote }}
    {{- else }}
    {{- if not .root.Values.prometheus.address }}
    {{- fail "autoscaling.metric is queue and autoscaling.kind is keda: set prometheus.address, such as http://prometheus-operated.monitoring.svc:9090" }}
    {{- end }}
    - type: prometheus
      # As an HPA would: replicas × share / threshold.
      metricType: Value
      metadata:
        serverAddress: {{ .root.Values.prometheus.address }}
        query: {{ include "coserve.queueShare" . | quote }}
        threshold: {{ divf $scaling.queue 100 | quote }}
    {{- end }}
{{- else }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .tier }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "coserve.labels" (list .root .component) | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ .tier }}
  minReplicas: {{ $scaling.minReplicas }}
  maxReplicas: {{ $scaling.maxReplicas }}
  {{- with $scaling.behavior }}
  behavior:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  metrics:
    {{- if eq $scaling.metric "cpu" }}
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ $scaling.cpu }}
    {{- else }}
    # From prometheus-adapter, with the rules of deploy/helm/prometheus-adapter.yaml.
    - type: Pods
      pods:
        metric:
          name: {{ ternary "triton_queue_share" "coserve_queue_share" (eq .component "triton") }}
        target:
          type: AverageValue
          averageValue: {{ mul 10 $scaling.queue }}m
    {{- end }}
{{- end }}
{{- end }}
{{- end }}
