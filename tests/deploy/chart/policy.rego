# What every object of the chart keeps to. input.objects are all objects of one rendering; deny has a sentence for each that does not.
package chart

workloads := [o | o := input.objects[_]; o.kind == ["Deployment", "StatefulSet"][_]]
jobs := [o | o := input.objects[_]; o.kind == "Job"]
pods := array.concat(
  [{"name": o.metadata.name, "labels": o.spec.template.metadata.labels, "spec": o.spec.template.spec} | o := array.concat(workloads, jobs)[_]],
  [{"name": o.metadata.name, "labels": o.spec.jobTemplate.spec.template.metadata.labels, "spec": o.spec.jobTemplate.spec.template.spec} | o := input.objects[_]; o.kind == "CronJob"],
)
all_containers[[p.name, c]] { p := pods[_]; c := p.spec.containers[_] }
all_containers[[p.name, c]] { p := pods[_]; is_array(p.spec.initContainers); c := p.spec.initContainers[_] }

deny[msg] { all_containers[[pod, c]]; not c.securityContext.readOnlyRootFilesystem; msg := sprintf("%s/%s can write to its root", [pod, c.name]) }
deny[msg] { all_containers[[pod, c]]; not c.securityContext.runAsNonRoot; msg := sprintf("%s/%s may run as root", [pod, c.name]) }
deny[msg] { all_containers[[pod, c]]; c.securityContext.allowPrivilegeEscalation; msg := sprintf("%s/%s may get privileges", [pod, c.name]) }
deny[msg] { all_containers[[pod, c]]; c.securityContext.capabilities.drop != ["ALL"]; msg := sprintf("%s/%s has capabilities", [pod, c.name]) }
deny[msg] { all_containers[[pod, c]]; c.securityContext.seccompProfile.type != "RuntimeDefault"; msg := sprintf("%s/%s has no seccomp profile", [pod, c.name]) }
deny[msg] { all_containers[[pod, c]]; k := ["requests", "limits"][_]; r := ["cpu", "memory"][_]; not c.resources[k][r]; msg := sprintf("%s/%s has no %s of %s", [pod, c.name, k, r]) }
deny[msg] { all_containers[[pod, c]]; endswith(c.image, ":latest"); msg := sprintf("%s/%s has no version", [pod, c.name]) }

# Probes on every container that stays.
deny[msg] { o := workloads[_]; c := o.spec.template.spec.containers[_]; p := ["startupProbe", "readinessProbe", "livenessProbe"][_]; not c[p]; msg := sprintf("%s/%s has no %s", [o.metadata.name, c.name, p]) }
deny[msg] { o := workloads[_]; not has_budget(o); msg := sprintf("%s has no PodDisruptionBudget", [o.metadata.name]) }
has_budget(o) { b := input.objects[_]; b.kind == "PodDisruptionBudget"; b.metadata.namespace == o.metadata.namespace; b.spec.maxUnavailable == 1; b.spec.selector.matchLabels == o.spec.selector.matchLabels }
deny[msg] { o := workloads[_]; not spreads(o); msg := sprintf("%s is not spread over zones", [o.metadata.name]) }
spreads(o) { o.spec.template.spec.topologySpreadConstraints[_].topologyKey == "topology.kubernetes.io/zone" }

# Only init, which is a hook, and Prometheus speak with the API server.
may_speak := {"init", "prometheus"}
deny[msg] { p := pods[_]; p.spec.automountServiceAccountToken; not may_speak[p.labels["app.kubernetes.io/component"]]; msg := sprintf("%s has a token of the API server", [p.name]) }
deny[msg] { o := input.objects[_]; o.kind == ["ClusterRole", "ClusterRoleBinding"][_]; msg := sprintf("%s is for the whole cluster", [o.metadata.name]) }
deny[msg] { o := input.objects[_]; o.kind == "Role"; not startswith(object.get(object.get(o.metadata, "annotations", {}), "helm.sh/hook", ""), "pre-install"); not reads_pods(o); msg := sprintf("the Role %s may do more than Prometheus needs", [o.metadata.name]) }
reads_pods(o) { o.rules == [{"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list", "watch"]}] }

# No secret in an environment variable, but PGPASSWORD, because psql reads no file of that form.
deny[msg] { all_containers[[pod, c]]; e := c.env[_]; e.valueFrom.secretKeyRef; e.name != "PGPASSWORD"; msg := sprintf("%s/%s has %s in its environment", [pod, c.name, e.name]) }
deny[msg] { o := input.objects[_]; o.kind == "Secret"; msg := sprintf("the chart contains the Secret %s", [o.metadata.name]) }

# Each pod has a network policy of its own, besides the default of its namespace.
deny[msg] { p := pods[_]; not has_policy(p); msg := sprintf("%s has no NetworkPolicy", [p.name]) }
has_policy(p) { n := input.objects[_]; n.kind == "NetworkPolicy"; n.spec.podSelector.matchLabels["app.kubernetes.io/component"] == p.labels["app.kubernetes.io/component"] }
namespaces := {o.metadata.namespace | o := workloads[_]}
deny[msg] { n := namespaces[_]; not denies(n); msg := sprintf("%s has no default-deny policy", [n]) }
denies(n) { d := input.objects[_]; d.kind == "NetworkPolicy"; d.metadata.namespace == n; endswith(d.metadata.name, "default-deny"); not d.spec.ingress }
