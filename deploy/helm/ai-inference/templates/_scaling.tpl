{{- /*
The autoscaler of a StatefulSet. Keys: root, component, name, target, scaling (values), cpu (target in percent, or 0), and for pools: pool,
metric (cpu, gpu or wanted).
*/ -}}
{{- define "aimesh.scaler" -}}
{{- $root := .root -}}{{- $scaling := .scaling -}}{{- $isWanted := eq (.metric | default "") "wanted" -}}
{{- $prometheus := ternary (printf "http://%s:9090/prometheus" (include "aimesh.host" (list $root "prometheus"))) $root.Values.monitoring.prometheusUrl $root.Values.observability.install -}}
{{- $reference := dict "apiVersion" "apps/v1" "kind" "StatefulSet" "name" .target | toJson -}}
{{- if $scaling.hpa }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{ include "aimesh.metadata" (list $root .component .name) }}
spec:
  scaleTargetRef: {{ $reference }}
  minReplicas: {{ $scaling.min }}
  maxReplicas: {{ $scaling.max }}
  behavior: {scaleDown: {stabilizationWindowSeconds: {{ $scaling.idleSeconds | default 300 }}, policies: [{type: Percent, value: 25, periodSeconds: 60}]}}
  metrics:
    {{- if .cpu }}
    - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ .cpu }}}}}
    {{- else }}
    # From Prometheus by prometheus-adapter, whose rules are in monitoring.yaml.
    - {type: External, external: {metric: {name: {{ include "aimesh.adapted" .pool }}_gpu_percent}, target: {type: Value, value: {{ $scaling.target | quote }}}}}
    - {type: External, external: {metric: {name: {{ include "aimesh.adapted" .pool }}_first_token_seconds}, target: {type: Value, value: {{ $scaling.firstTokenSeconds | quote }}}}}
    {{- end }}
{{- else if $scaling.keda }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {{ include "aimesh.metadata" (list $root .component .name) }}
spec:
  scaleTargetRef: {{ $reference }}
  minReplicaCount: {{ $scaling.min }}
  maxReplicaCount: {{ $scaling.max }}
  cooldownPeriod: {{ $scaling.idleSeconds | default 300 }}
  pollingInterval: 15
  {{- if $isWanted }}
  # Without data, keep the number of pods.
  fallback: {failureThreshold: 3, replicas: {{ max 1 $scaling.min }}, behavior: currentReplicas}
  {{- end }}
  triggers:
    {{- if .cpu }}
    - {type: cpu, metricType: Utilization, metadata: {value: {{ .cpu | quote }}}}
    {{- else if $isWanted }}
    - type: metrics-api
      authenticationRef: {name: {{ .name }}}
      metadata: {url: "http://{{ include "aimesh.host" (list $root "metrics") }}:3004/autoscale/v1/{{ .pool }}", valueLocation: wanted, targetValue: "1", activationTargetValue: "0", authMode: bearer}
    {{- else }}
    {{- range $query, $target := dict "aimesh.gpu-query" $scaling.target "aimesh.first-token-query" $scaling.firstTokenSeconds }}
    - type: prometheus
      metricType: Value
      metadata: {serverAddress: {{ $prometheus | quote }}, query: {{ include $query $.pool | quote }}, threshold: {{ $target | quote }}}
    {{- end }}
    {{- end }}
{{- if $isWanted }}
---
# A key with the scope scale:read, from `aicli keys create keda --scope scale:read`.
apiVersion: keda.sh/v1alpha1
kind: TriggerAuthentication
metadata: {{ include "aimesh.metadata" (list $root .component .name) }}
spec: {secretTargetRef: [{parameter: token, name: {{ include "aimesh.name" (list $root "scale-key") }}, key: key}]}
{{- end }}
{{- end }}
{{- end }}
{{- define "aimesh.adapted" -}}aimesh_{{ replace "-" "_" . }}{{- end }}
{{- /* The label machine is the pod's name. The first token is counted by node, so it is joined with a series that has both. */ -}}
{{- define "aimesh.gpu-query" -}}
100 * avg(ai_platform_gpu_usage_ratio{machine=~"{{ . }}-[0-9]+"})
{{- end }}
{{- define "aimesh.first-token-query" -}}
histogram_quantile(0.95, sum by (le) (rate(gen_ai_server_time_to_first_token_seconds_bucket[5m]) * on (node) group_left () (0 * max by (node) (ai_platform_host_cpu_usage_ratio{machine=~"{{ . }}-[0-9]+"}) + 1)))
{{- end }}
