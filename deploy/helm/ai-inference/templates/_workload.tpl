{{- /*
The pods of all programs are made here. "aimesh.workload" makes a Deployment or StatefulSet with its Service and PodDisruptionBudget, "aimesh.job"
a Job or CronJob, and "aimesh.service" the workload of one of our own services. Keys of the argument:
  root, component, name   $, the label app.kubernetes.io/component, and the object's name
  kind, replicas          Deployment or StatefulSet; no replicas where an autoscaler decides; whenScaled Delete: volumes go with their pods
  values                  this workload's values: resources, nodeSelector, tolerations
  image, command, args, env (name: text or source), lifecycle, grace (seconds to stop), user (10001)
  files                   sources of the projected volume /run/aimesh
  data                    size of the volume /var/lib/aimesh; empty: lost with the pod
  ports, http, probe      name: number; the port that answers /healthz and /readyz, or another probe; patience (failed probes at the start)
  volumes, mounts, init, sidecars   more of them; containers have the same keys as this argument. With restart (Always), an init container stays
*/ -}}

{{- define "aimesh.container" -}}
- name: {{ .component }}
  image: {{ .image | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  {{- with .restart }}{{ printf "restartPolicy: %s" . | nindent 2 }}{{ end }}
  command: {{ .command | default list | toJson }}
  args: {{ .args | default list | toJson }}
  env:
    {{- range $name, $value := .env }}
    {{- if ne (toString $value) "" }}
    - {{ ternary (dict "name" $name "valueFrom" $value) (dict "name" $name "value" (toString $value)) (kindIs "map" $value) | toJson }}
    {{- end }}
    {{- end }}
  ports: [{{ range $name, $port := .ports }}{name: {{ $name }}, containerPort: {{ $port }}, protocol: TCP}, {{ end }}]
  {{- if or .http .probe }}
  {{- $alive := .probe | default (dict "httpGet" (dict "path" "/healthz" "port" .http)) }}
  {{- $ready := .probe | default (dict "httpGet" (dict "path" (.ready | default "/readyz") "port" .http)) }}
  startupProbe: {{ merge (dict "periodSeconds" 2 "timeoutSeconds" 5 "failureThreshold" (.patience | default 300)) $alive | toJson }}
  readinessProbe: {{ merge (dict "periodSeconds" 5 "timeoutSeconds" 5 "failureThreshold" 2) $ready | toJson }}
  livenessProbe: {{ merge (dict "periodSeconds" 10 "timeoutSeconds" 5 "failureThreshold" 6) $alive | toJson }}
  {{- end }}
  lifecycle: {{ .lifecycle | default dict | toJson }}
  resources: {{ toJson .values.resources }}
  securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, runAsNonRoot: true, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}
  {{- $mounts := prepend (.mounts | default list) (dict "name" "tmp" "mountPath" "/tmp") }}
  {{- if hasKey . "data" }}{{ $mounts = append $mounts (dict "name" "data" "mountPath" "/var/lib/aimesh") }}{{ end }}
  {{- if .files }}{{ $mounts = append $mounts (dict "name" "files" "mountPath" "/run/aimesh" "readOnly" true) }}{{ end }}
  volumeMounts: {{ toJson $mounts }}
{{- end }}

{{- define "aimesh.pod" -}}
{{- $root := .root -}}{{- $pod := . -}}{{- $user := .user | default 10001 -}}
metadata:
  labels: {{ merge (include "aimesh.selector" (list $root .component) | fromJson) (.labels | default dict) | toJson }}
  annotations: {{ .annotations | default dict | toJson }}
spec:
  serviceAccountName: {{ .serviceAccount | default "default" }}
  automountServiceAccountToken: {{ .token | default false }}
  enableServiceLinks: false
  restartPolicy: {{ .restartPolicy | default "Always" }}
  terminationGracePeriodSeconds: {{ .grace | default 45 }}
  securityContext: {runAsNonRoot: true, runAsUser: {{ $user }}, runAsGroup: {{ $user }}, fsGroup: {{ $user }}, fsGroupChangePolicy: OnRootMismatch, seccompProfile: {type: RuntimeDefault}}
  imagePullSecrets: [{{ range $i, $name := $root.Values.image.pullSecrets }}{{ if $i }}, {{ end }}{name: {{ $name }}}{{ end }}]
  nodeSelector: {{ .values.nodeSelector | default $root.Values.nodeSelector | toJson }}
  tolerations: {{ .values.tolerations | default $root.Values.tolerations | toJson }}
  initContainers:
    {{- range .init }}
    {{- include "aimesh.container" (mergeOverwrite (dict "root" $root "image" $pod.image) .) | nindent 4 }}
    {{- end }}
  containers:
    {{- range prepend (.sidecars | default list) . }}
    {{- include "aimesh.container" (mergeOverwrite (dict "root" $root) .) | nindent 4 }}
    {{- end }}
  {{- $volumes := prepend (.volumes | default list) (dict "name" "tmp" "emptyDir" dict) }}
  {{- if and (hasKey . "data") (not .data) }}{{ $volumes = append $volumes (dict "name" "data" "emptyDir" dict) }}{{ end }}
  {{- with .files }}{{ $volumes = append $volumes (dict "name" "files" "projected" (dict "defaultMode" 0440 "sources" .)) }}{{ end }}
  volumes: {{ toJson $volumes }}
  topologySpreadConstraints:
    {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - {maxSkew: 1, topologyKey: {{ $key }}, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {{ include "aimesh.selector" (list $root $pod.component) }}}}
    {{- end }}
{{- end }}

{{- define "aimesh.workload" -}}
{{- $root := .root -}}{{- $isSet := eq .kind "StatefulSet" -}}
{{- $selector := include "aimesh.selector" (list $root .component) -}}
apiVersion: apps/v1
kind: {{ .kind }}
metadata: {{ include "aimesh.metadata" (list $root .component .name) }}
spec:
  {{- if hasKey . "replicas" }}{{ printf "replicas: %v" .replicas | nindent 2 }}{{ end }}
  selector: {matchLabels: {{ $selector }}}
  template:
    {{- include "aimesh.pod" . | nindent 4 }}
  {{- if $isSet }}
  serviceName: {{ .name }}
  podManagementPolicy: Parallel
  persistentVolumeClaimRetentionPolicy: {whenScaled: {{ .whenScaled | default "Retain" }}, whenDeleted: Retain}
  volumeClaimTemplates: [{{ with .data }}{metadata: {name: data}, spec: {{ include "aimesh.claim" (list $root .) }}}{{ end }}]
  {{- else }}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  {{- end }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{ include "aimesh.metadata" (list $root .component .name) }}
spec: {maxUnavailable: 1, selector: {matchLabels: {{ $selector }}}}
---
apiVersion: v1
kind: Service
metadata: {{ include "aimesh.metadata" (list $root .component .name) }}
spec:
  {{- if or .headless (not .ports) }}{{ "clusterIP: None" | nindent 2 }}{{ end }}
  publishNotReadyAddresses: {{ .publishNotReady | default false }}
  selector: {{ $selector }}
  ports: [{{ range $name, $port := .servicePorts | default .ports }}{name: {{ $name }}, port: {{ $port }}, targetPort: {{ $name }}}, {{ end }}]
{{- end }}

{{- define "aimesh.claim" -}}
{{- $class := (index . 0).Values.storageClass | default nil -}}
{{- dict "accessModes" (list "ReadWriteOnce") "storageClassName" $class "resources" (dict "requests" (dict "storage" (index . 1))) | toJson -}}
{{- end }}

{{- /* A Job with the keys of "aimesh.workload", and jobAnnotations, seconds and retries; with schedule, a CronJob. */ -}}
{{- define "aimesh.job" -}}
apiVersion: batch/v1
kind: {{ ternary "CronJob" "Job" (hasKey . "schedule") }}
metadata: {{ include "aimesh.metadata" (list .root .component .name .jobAnnotations) }}
spec:
  {{- $pod := include "aimesh.pod" (merge (dict "restartPolicy" "OnFailure") .) | fromYaml }}
  {{- $job := dict "backoffLimit" (.retries | default 6) "activeDeadlineSeconds" (.seconds | default 1800) "ttlSecondsAfterFinished" 86400 "template" $pod }}
  {{- with .schedule }}{{ $job = dict "schedule" . "concurrencyPolicy" "Forbid" "jobTemplate" (dict "spec" $job) }}{{ end }}
  {{- toYaml $job | nindent 2 }}
{{- end }}

{{- /*
The environment and the files of one of our own programs, as JSON. Keys: root, secrets (name of its Secret), secretSettings (those in it, by
lower-case name), given (environment that this chart sets), values (settings and secretFiles of the user, which win).
*/ -}}
{{- define "aimesh.settings" -}}
{{- $v := .root.Values -}}{{- $env := dict "NATS_URL" (include "aimesh.nats-url" .root) -}}{{- $sources := dict -}}
{{- range $setting := .secretSettings -}}
{{- $_ := set $env (printf "%s_FILE" $setting) (printf "/run/aimesh/%s" (lower $setting)) -}}
{{- $key := ternary (printf "%s_database_url" $.service) (lower $setting) (eq $setting "DATABASE_URL") -}}
{{- with $v.postgres.externalSecret -}}{{- if hasSuffix "DATABASE_URL" $setting -}}{{- $_ := set $sources $setting (dict "secret" . "key" $key) -}}{{- end -}}{{- end -}}
{{- with $v.valkey.externalSecret -}}{{- if eq $setting "REDIS_URL" -}}{{- $_ := set $sources $setting (dict "secret" . "key" "redis_url") -}}{{- end -}}{{- end -}}
{{- end -}}
{{- if eq $v.nats.tls "none" -}}{{- $_ := set $env "ALLOW_PLAIN_NATS" "true" -}}
{{- else if not $v.nats.url -}}{{- $_ := set $sources "NATS_CA" (dict "secret" (include "aimesh.name" (list .root "nats-tls")) "key" "ca.crt") -}}
{{- end -}}
{{- with .values.nodeKeySecret -}}{{- $_ := set $sources "NODE_KEY" (dict "secret" . "key" "node.nk") -}}{{- end -}}
{{- /* Not mergeOverwrite, which ignores false and 0. */ -}}
{{- range list .given $v.settings .values.settings -}}{{- range $setting, $value := . -}}{{- $_ := set $env $setting $value -}}{{- end -}}{{- end -}}
{{- range $setting, $source := .values.secretFiles -}}{{- $_ := set $sources $setting $source -}}{{- end -}}
{{- $files := list (include "aimesh.file" (list .secrets) | fromJson) -}}
{{- range $setting, $source := $sources -}}
{{- $_ := set $env (printf "%s_FILE" $setting) (printf "/run/aimesh/%s" $setting) -}}
{{- $files = append $files (include "aimesh.file" (list $source.secret $source.key $setting) | fromJson) -}}
{{- end -}}
{{- dict "env" $env "files" $files | toJson -}}
{{- end }}

{{- /* One of our own services: the keys of "aimesh.workload" and "aimesh.settings", service (its module), program (its image) and moreFiles. */ -}}
{{- define "aimesh.service" -}}
{{- $name := .name | default (include "aimesh.name" (list .root .component)) -}}
{{- $program := dict "service" (.service | default .component) "secrets" (.secrets | default $name) -}}
{{- $_ := merge $program . -}}
{{- $state := dict "NODE_KEY_FILE" "/var/lib/aimesh/node.nk" "MESH_STATE_FILE" "/var/lib/aimesh/node.mesh" "BIND_HOST" "0.0.0.0" "ALLOW_PLAIN_HTTP" "true" -}}
{{- if not (or .values.nodeKeySecret (eq $program.service "auth")) -}}{{- $_ := set $state "JOIN_TICKET_FILE" "/run/aimesh/ticket" -}}{{- end -}}
{{- $found := include "aimesh.settings" (set $program "given" (merge (dict) .given $state)) | fromJson -}}
{{- $made := dict
  "name" $name "image" (include "aimesh.image" (list .root (.program | default "aimesh"))) "env" $found.env
  "command" (list "python" "-m" (printf "services.%s" $program.service)) "files" (concat $found.files (.moreFiles | default list))
-}}
{{- include "aimesh.workload" (mergeOverwrite (dict "data" "") . $made) -}}
{{- end }}

{{- /* A ServiceAccount that may do something: root, component, name, namespaces, rules, annotations. */ -}}
{{- define "aimesh.account" -}}
{{- $account := . -}}
apiVersion: v1
kind: ServiceAccount
metadata: {{ include "aimesh.metadata" (list .root .component .name .annotations) }}
automountServiceAccountToken: false
{{- range .namespaces }}
{{- $metadata := dict "name" $account.name "namespace" . "annotations" $account.annotations | toJson }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{ $metadata }}
rules: {{ toJson $account.rules }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{ $metadata }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ $account.name }}}
subjects: [{kind: ServiceAccount, name: {{ $account.name }}, namespace: {{ include "aimesh.namespace" (list $account.root $account.component) }}}]
{{- end }}
{{- end }}

{{- /* A source of /run/aimesh: (list secret key path), or only the Secret for all its keys. */ -}}
{{- define "aimesh.file" -}}
{{- $items := list -}}{{- if gt (len .) 1 -}}{{- $items = list (dict "key" (index . 1) "path" (index . 2)) -}}{{- end -}}
{{- dict "secret" (ternary (dict "name" (first .) "items" $items) (dict "name" (first .)) (gt (len .) 1)) | toJson -}}
{{- end }}

