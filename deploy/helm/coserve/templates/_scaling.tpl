{{/* Scaling and disruption of one tier: (dict "root" . "tier" NAME "component" COMPONENT "values" VALUES). */}}

{{- define "coserve.budget" -}}
{{- if .values.podDisruptionBudget.enabled }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .tier | quote }}
  namespace: {{ .root.Release.Namespace | quote }}
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

{{/* Prometheus' query for a metric, over all pods of a tier; the queue share is 0 without requests. */}}
{{- define "coserve.query" -}}
{{- $labels := printf "namespace=%q,service=%q" .root.Release.Namespace .tier -}}
{{- if eq .values.autoscaling.metric "requests" -}}
sum(avg_over_time(coserve_requests_in_flight{ {{- $labels -}} }[1m]))
{{- else -}}
{{- $waited := "coserve_queue_duration_seconds_sum" -}}
{{- $total := "coserve_request_duration_seconds_sum" -}}
{{- if eq .component "triton" -}}
{{- $waited = "nv_inference_queue_duration_us" -}}
{{- $total = "nv_inference_request_duration_us" -}}
{{- end -}}
sum(rate({{ $waited }}{ {{- $labels -}} }[1m])) / (sum(rate({{ $total }}{ {{- $labels -}} }[1m])) > 0) or vector(0)
{{- end }}
{{- end }}

{{- define "coserve.autoscaler" -}}
{{- $scaling := .values.autoscaling }}
{{- if $scaling.enabled }}
{{- if and (eq .component "triton") (eq $scaling.metric "requests") }}
{{- fail "triton.autoscaling.metric: Triton does not count its requests in progress; choose cpu or queue" }}
{{- end }}
{{- $prefix := ternary "triton." "" (eq .component "triton") }}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) }}
{{- fail (printf "%sautoscaling.minReplicas (%v) is more than maxReplicas (%v)" $prefix $scaling.minReplicas $scaling.maxReplicas) }}
{{- end }}
{{- $resources := default dict .values.resources }}
{{- if and (eq $scaling.metric "cpu") (not (dig "requests" "cpu" "" $resources)) (not (dig "limits" "cpu" "" $resources)) }}
{{- fail (printf "%sautoscaling.metric is cpu, a part of the requested cores: set %sresources.limits.cpu or requests.cpu" $prefix $prefix) }}
{{- end }}
{{- $share := eq $scaling.metric "queue" }}
{{- if eq $scaling.kind "keda" }}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .tier | quote }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels:
    {{- include "coserve.labels" (list .root .component) | nindent 4 }}
spec:
  scaleTargetRef:
    name: {{ .tier | quote }}
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
    {{- fail "autoscaling.kind is keda and autoscaling.metric not cpu: set prometheus.address, such as http://prometheus-operated.monitoring.svc:9090" }}
    {{- end }}
    - type: prometheus
      # A share scales the replicas there are; requests are divided among them.
      metricType: {{ ternary "Value" "AverageValue" $share }}
      metadata:
        serverAddress: {{ .root.Values.prometheus.address | quote }}
        query: {{ include "coserve.query" . | quote }}
        threshold: {{ ternary (divf $scaling.queue 100) $scaling.requests $share | quote }}
    {{- end }}
{{- else }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .tier | quote }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels:
    {{- include "coserve.labels" (list .root .component) | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ .tier | quote }}
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
          name: {{ if $share }}{{ .component }}_queue_share{{ else }}gateway_requests_in_progress{{ end }}
        target:
          type: AverageValue
          averageValue: {{ ternary (printf "%vm" (mul 10 $scaling.queue)) (toString $scaling.requests) $share | quote }}
    {{- end }}
{{- end }}
{{- end }}
{{- end }}
