{{- /* Names, namespaces, labels, images and addresses. Most take (list $ "component"). */ -}}

{{- define "aimesh.name" -}}{{ default (index . 0).Release.Name (index . 0).Values.nameOverride }}-{{ index . 1 }}{{- end }}
{{- define "aimesh.namespace" -}}
{{- $groups := dict "auth" "gateway" "gateway" "gateway" "web" "gateway" "model-router" "gateway" "router" "gateway" "migrate" "gateway" "entry" "gateway" "metrics" "observability" "prometheus" "observability" "grafana" "observability" "observability" "observability" "worker" "models" -}}
{{- $group := ternary "models" (get $groups (index . 1) | default "infra") (hasPrefix "pool" (index . 1)) -}}
{{- default (index . 0).Release.Namespace (get (index . 0).Values.namespaces $group) }}
{{- end }}

{{- /* All namespaces of the release, as a JSON list. */ -}}
{{- define "aimesh.namespaces" -}}
{{- $found := list -}}
{{- range list "auth" "pool" "metrics" "nats" -}}{{- $found = append $found (include "aimesh.namespace" (list $ .)) -}}{{- end -}}
{{- uniq $found | toJson }}
{{- end }}

{{- /* The name of a component's Service in the cluster. */ -}}
{{- define "aimesh.host" -}}{{ include "aimesh.name" . }}.{{ include "aimesh.namespace" . }}{{- end }}
{{- define "aimesh.selector" -}}
{{- dict "app.kubernetes.io/name" "ai-inference" "app.kubernetes.io/instance" (index . 0).Release.Name "app.kubernetes.io/component" (index . 1) | toJson -}}
{{- end }}

{{- /* (list $ component name annotations labels); the last two are optional. */ -}}
{{- define "aimesh.metadata" -}}
{{- $root := index . 0 -}}
{{- $metadata := dict "name" (index . 2) "namespace" (include "aimesh.namespace" .) -}}
{{- $labels := include "aimesh.selector" . | fromJson -}}
{{- $_ := merge $labels (dict "app.kubernetes.io/version" (include "aimesh.tag" $root) "app.kubernetes.io/managed-by" $root.Release.Service "app.kubernetes.io/part-of" "aimesh") -}}
{{- if gt (len .) 3 -}}{{- with index . 3 -}}{{- $_ := set $metadata "annotations" . -}}{{- end -}}{{- end -}}
{{- if gt (len .) 4 -}}{{- $_ := merge $labels (index . 4) -}}{{- end -}}
{{- set $metadata "labels" $labels | toJson -}}
{{- end }}
{{- define "aimesh.tag" -}}{{ default .Chart.AppVersion .Values.image.tag }}{{- end }}
{{- define "aimesh.image" -}}{{ (index . 0).Values.image.registry }}/{{ index . 1 }}:{{ include "aimesh.tag" (index . 0) }}{{- end }}
{{- define "aimesh.nats-url" -}}
{{- $urls := list -}}
{{- range until (int .Values.nats.replicas) -}}
{{- $urls = append $urls (printf "%s://%s-%d.%s:4222" (ternary "nats" "tls" (eq $.Values.nats.tls "none")) (include "aimesh.name" (list $ "nats")) . (include "aimesh.host" (list $ "nats"))) -}}
{{- end -}}
{{- .Values.nats.url | default (join "," $urls) -}}
{{- end }}

{{- /* NATS for tickets: where machines outside reach it, or else NATS_URL. */ -}}
{{- define "aimesh.public-nats-url" -}}
{{- $urls := list -}}{{- $pages := include "aimesh.public-url" . -}}
{{- with .Values.nats.publicHost -}}{{- $urls = append $urls (printf "tls://%s:4222" .) -}}{{- end -}}
{{- if and (hasPrefix "https:" $pages) (not .Values.nats.url) -}}{{- $urls = append $urls (printf "wss://%s/mesh" (.Values.entry.apiHost | default .Values.entry.webHost)) -}}{{- end -}}
{{- join "," $urls | default (include "aimesh.nats-url" .) -}}
{{- end }}

{{- /* URLs for the Secrets; init replaces {role} and {password}. Empty for your own servers. */ -}}
{{- define "aimesh.postgres-host" -}}{{ include "aimesh.host" (list . (ternary "postgres-rw" "postgres" .Values.postgres.cnpg)) }}{{- end }}
{{- define "aimesh.database-url" -}}{{ if not .Values.postgres.externalSecret }}postgresql://{role}:{password}@{{ include "aimesh.postgres-host" . }}:5432/aimesh{{ end }}{{- end }}
{{- define "aimesh.database-read-url" -}}{{ if .Values.postgres.cnpg }}postgresql://{role}:{password}@{{ include "aimesh.host" (list . "postgres-ro") }}:5432/aimesh{{ end }}{{- end }}
{{- define "aimesh.redis-url" -}}
{{- $host := include "aimesh.host" (list . "valkey") -}}{{- $name := include "aimesh.name" (list . "valkey") -}}
{{- if .Values.valkey.externalSecret -}}
{{- else if .Values.valkey.sentinel -}}
redis+sentinel://:{password}@{{ $name }}-0.{{ $host }},{{ $name }}-1.{{ $host }},{{ $name }}-2.{{ $host }}:26379/main?db=0&sentinel_password={password}
{{- else -}}redis://:{password}@{{ $host }}:6379
{{- end -}}
{{- end }}
{{- define "aimesh.public-url" -}}{{ with .Values.entry.webHost }}{{ ternary "http" "https" $.Values.entry.allowPlainHttp }}://{{ . }}{{ end }}{{- end }}

{{- /* `off` after the pre-upgrade hook has migrated; before the first installation there is no database to migrate. */ -}}
{{- define "aimesh.migrate" -}}{{ ternary "off" "on" (and .Values.migrate.pre .Release.IsUpgrade) }}{{- end }}

{{- /* auth's keys from a Secret or CSI volume of yours, as keys of "aimesh.service". */ -}}
{{- define "aimesh.own-keys" -}}
{{- if .Values.auth.keysSecret -}}
moreFiles: [{secret: {name: {{ .Values.auth.keysSecret }}, items: [{key: mesh_ca_key, path: mesh_ca_key}, {key: data_key, path: data_key}]}}]
{{- else if .Values.auth.keysCsi -}}
volumes: [{name: keys, csi: {{ mergeOverwrite (dict "readOnly" true) .Values.auth.keysCsi | toJson }}}]
mounts: [{name: keys, mountPath: /run/keys, readOnly: true}]
{{- end -}}
{{- end }}
{{- define "aimesh.secret-names" -}}["auth", "gateway", "web", "router", "worker", "migrate", "metrics", "observability", "nats", "valkey", "postgres", "home"]{{- end }}

{{- /* The ConfigMap of a dashboard: (list $ path). */ -}}
{{- define "aimesh.board" -}}{{ include "aimesh.name" (list (index . 0) (base (index . 1) | trimSuffix ".json" | replace "aimesh-" "dashboard-")) }}{{- end }}
