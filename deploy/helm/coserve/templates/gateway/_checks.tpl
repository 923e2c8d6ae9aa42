{{/* Values that do not fit together, which the schema cannot say. */}}
{{- define "coserve.check" -}}
{{- if and .Values.tls.clientAuthorities.secret (not .Values.tls.secret) }}
{{- fail "tls.clientAuthorities needs tls.secret: only a gateway with a certificate of its own can ask clients for theirs" }}
{{- end }}
{{- if and .Values.tls.clientAuthorities.secret (not .Values.tls.probeSecret) }}
{{- fail "tls.clientAuthorities refuses the kubelet's probes too: set tls.probeSecret to a Secret with a client certificate for them (tls.crt, tls.key)" }}
{{- end }}
{{- if and .Values.auth.allowAnonymous .Values.auth.apiKeys.secret }}
{{- fail "auth.allowAnonymous and auth.apiKeys.secret exclude each other" }}
{{- end }}
{{- if and .Values.triton.enabled .Values.triton.url }}
{{- fail "triton.enabled runs a Triton of the chart's own, and triton.url names another: set one of them" }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs, such as [{name: GATEWAY, namespace: NAMESPACE}]" }}
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
