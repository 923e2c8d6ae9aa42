{{/* Values that do not fit together, which the schema cannot say. */}}
{{- define "coserve.check" -}}
{{- if and .Values.tls.clientAuthorities.secret (not .Values.tls.secret) }}
{{- fail "tls.clientAuthorities needs tls.secret: only a gateway with a certificate of its own can ask clients for theirs" }}
{{- end }}
{{- if and .Values.tls.clientAuthorities.secret (not .Values.tls.probeSecret) }}
{{- fail "tls.clientAuthorities refuses the kubelet's probes too: set tls.probeSecret to a Secret with a client certificate for them (tls.crt, tls.key)" }}
{{- end }}
{{- if and .Values.tls.probeSecret (not .Values.tls.clientAuthorities.secret) }}
{{- fail "tls.probeSecret is for mutual TLS: set tls.clientAuthorities.secret too, or neither" }}
{{- end }}
{{- if and .Values.auth.allowAnonymous (or .Values.auth.apiKeys.secret .Values.tls.clientAuthorities.secret) }}
{{- fail "auth.allowAnonymous excludes auth.apiKeys.secret and tls.clientAuthorities.secret: choose" }}
{{- end }}
{{- if and .Values.triton.enabled .Values.triton.url }}
{{- fail "triton.enabled runs a Triton of the chart's own, and triton.url names another: set one of them" }}
{{- end }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "coserve.fullname" .)) }}
{{- fail (printf "%q cannot be the name of a Service, which has lower-case letters, digits and -, with a letter first: set fullnameOverride" (include "coserve.fullname" .)) }}
{{- end }}
{{- if and .Values.grpc.enabled (eq (int .Values.grpc.port) (int .Values.service.port)) }}
{{- fail (printf "service.port and grpc.port are both %v: change one of them" .Values.grpc.port) }}
{{- end }}
{{- if and .Values.serviceAccount.annotations (not .Values.serviceAccount.create) }}
{{- fail "serviceAccount.annotations have no account: set serviceAccount.create, or annotate your own account" }}
{{- end }}
{{- if .Values.triton.enabled }}
{{- if and (has (toString .Values.triton.maxSurge) (list "0" "0%")) (has (toString .Values.triton.maxUnavailable) (list "0" "0%")) }}
{{- fail "triton.maxSurge and triton.maxUnavailable are both 0, which lets no update begin: set one of them to 1" }}
{{- end }}
{{- $asked := or .Values.serviceMonitor.enabled (and .Values.triton.autoscaling.enabled (eq .Values.triton.autoscaling.metric "queue")) }}
{{- if and $asked .Values.triton.networkPolicy.enabled (not .Values.triton.networkPolicy.metricsFrom) }}
{{- fail "triton.networkPolicy keeps Prometheus from Triton's metrics: set triton.networkPolicy.metricsFrom, such as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" }}
{{- end }}
{{- end }}
{{- if has ".." (splitList "/" .Values.repository.folder) }}
{{- fail "repository.folder is below the source, and has no .." }}
{{- end }}
{{- range .Values.volumes }}
{{- if has .name (list "tmp" "repository" "keys" "tls" "authorities" "probe") }}
{{- fail (printf "volumes has a volume called %s, as the chart has: rename it" .name) }}
{{- end }}
{{- end }}
{{- include "coserve.checkEnvironment" . }}
{{- include "coserve.checkRoute" . }}
{{- end }}

{{/* A variable that is set twice: Kubernetes would take the last without a word. The server takes its own in any case. */}}
{{- define "coserve.checkEnvironment" -}}
{{- $names := list "COSERVE_HOST" "COSERVE_PORT" }}
{{- range include "coserve.gateway.ownEnv" . | fromYamlArray }}{{ $names = append $names .name }}{{ end }}
{{- range .Values.env }}
{{- $name := ternary (upper .name) .name (hasPrefix "COSERVE_" (upper .name)) }}
{{- if has $name $names }}
{{- fail (printf "env sets %s, which the chart or settings set already, or another entry: remove it" .name) }}
{{- end }}
{{- $names = append $names $name }}
{{- end }}
{{- $names = list }}
{{- range .Values.triton.env }}
{{- if has .name $names }}
{{- fail (printf "triton.env sets %s twice: remove one" .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- end }}

{{- define "coserve.checkRoute" -}}
{{- $route := .Values.httpRoute }}
{{- if and $route.enabled (not $route.parentRefs) }}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs, such as [{name: GATEWAY, namespace: NAMESPACE}]" }}
{{- end }}
{{- if and $route.canary.weight (not $route.canary.service) }}
{{- fail "httpRoute.canary.weight needs httpRoute.canary.service, the Service of another release" }}
{{- end }}
{{- if eq $route.canary.service (include "coserve.fullname" .) }}
{{- fail "httpRoute.canary.service is this release's own Service: name another release's" }}
{{- end }}
{{- if and $route.enabled (not $route.weight) (not $route.canary.weight) }}
{{- fail "httpRoute.weight and httpRoute.canary.weight are both 0: no request would be answered" }}
{{- end }}
{{- end }}

{{/* Whether the gateway has to be told that anyone may ask: within the cluster that is the default. */}}
{{- define "coserve.anonymous" -}}
{{- $open := or (ne .Values.service.type "ClusterIP") .Values.httpRoute.enabled }}
{{- if or .Values.auth.apiKeys.secret .Values.tls.clientAuthorities.secret }}
{{- else if .Values.auth.allowAnonymous -}}
true
{{- else if or $open (kindIs "bool" .Values.auth.allowAnonymous) }}
{{- fail (printf "%s: set auth.apiKeys.secret or tls.clientAuthorities.secret, or auth.allowAnonymous=true if anyone may use the gateway" (ternary "service.type or httpRoute let others than the cluster's pods reach the gateway" "auth.allowAnonymous is false, and nothing else says who may ask" $open)) }}
{{- else -}}
true
{{- end }}
{{- end }}
