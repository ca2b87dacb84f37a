# web and gateway on Cloud Run. The values of their secrets don't pass through Terraform.
locals {
  secrets = {
    frontend = { JOIN_TICKET = "web-ticket", WEB_SECRET = "web-secret", WEB_HOP_SECRET = "web-hop-secret", PRIVATE_CAS = "private-cas" }
    backend = {
      JOIN_TICKET        = "gateway-ticket", DATABASE_URL = "gateway-database-url", REDIS_URL = "gateway-redis-url",
      PROMPT_HASH_SECRET = "prompt-hash-secret", WEB_HOP_SECRET = "web-hop-secret", PRIVATE_CAS = "private-cas"
    }
  }
  accessors = merge([for service, secrets in local.secrets : { for secret in values(secrets) : "${service}/${secret}" => [service, secret] }]...)
  registry  = { for region in local.regions : region => "${region}-docker.pkg.dev/${var.project}/ghcr/${var.owner}" }
  # Each instance makes its own node key and joins with the ticket, which must be in a private file.
  join = "umask 077; echo \"$JOIN_TICKET\" >/tmp/ticket; echo \"$PRIVATE_CAS\" >/tmp/cas.pem; unset JOIN_TICKET PRIVATE_CAS;"
  # Cloud Run mounts NFS without locks, so instances must not share a file.
  journal = "export JOURNAL_FILE=/journal/$(cat /proc/sys/kernel/random/uuid)/gateway.journal; mkdir \"$${JOURNAL_FILE%/*}\";"
  node = {
    BIND_HOST        = "0.0.0.0"
    ALLOW_PLAIN_HTTP = "true"
    NODE_KEY_FILE    = "/tmp/node.nk"
    JOIN_TICKET_FILE = "/tmp/ticket"
    NATS_URL         = local.nats_url
    NATS_CA_FILE     = "/tmp/cas.pem"
    # Cloud Run's own proxy, Google's load balancers, and our address, which they append.
    TRUSTED_PROXIES = "169.254.0.0/16,35.191.0.0/16,130.211.0.0/22,${module.edge.address}"
  }
  service_annotations  = local.binary_authorization ? { "run.googleapis.com/binary-authorization" = "default" } : {}
  revision_annotations = { for region, key in local.kms_keys : region => { "run.googleapis.com/encryption-key" = key } }
}

resource "google_service_account" "run" {
  for_each   = local.secrets
  account_id = "aimesh-${each.key}"
}

resource "google_secret_manager_secret" "this" {
  for_each  = toset(flatten([for secrets in local.secrets : values(secrets)]))
  secret_id = each.key
  replication {
    auto {}
  }
  depends_on = [google_project_service.apis]
}

resource "google_secret_manager_secret_iam_member" "this" {
  for_each  = local.accessors
  secret_id = google_secret_manager_secret.this[each.value[1]].id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.run[each.value[0]].member
}

module "frontend" {
  source      = "../../modules/cloud-run"
  for_each    = toset(var.serve ? local.regions : [])
  name        = "frontend"
  region      = each.key
  account     = google_service_account.run["frontend"].email
  image       = "${local.registry[each.key]}/aimesh-web:${var.release}"
  command     = "${local.join} exec python -m services.web"
  port        = 3000
  size        = { cpu = 1, memory = "1Gi", timeout = 345, min = 1, max = 10, concurrency = 1000, target = 800, cpu_target = 0.8 }
  environment = merge(local.node, { GATEWAY_URL = module.backend[each.key].url, PUBLIC_URL = "https://${var.hosts.web}" })
  secrets     = local.secrets.frontend
  connector   = module.network.connectors[each.key]
  nfs         = null
  annotations = { service = local.service_annotations, revision = lookup(local.revision_annotations, each.key, {}) }
  depends_on  = [google_secret_manager_secret_iam_member.this]
}

module "backend" {
  source      = "../../modules/cloud-run"
  for_each    = toset(var.serve ? local.regions : [])
  name        = "backend"
  region      = each.key
  account     = google_service_account.run["backend"].email
  image       = "${local.registry[each.key]}/aimesh:${var.release}"
  command     = "${local.join} ${local.journal} exec python -m services.gateway"
  port        = 3002
  size        = { cpu = 2, memory = "2Gi", timeout = 345, min = 1, max = 10, concurrency = 500, target = 400, cpu_target = 0.7 }
  environment = local.node
  secrets     = local.secrets.backend
  connector   = module.network.connectors[each.key]
  nfs         = { server = google_compute_address.mesh[local.active].address, path = "/srv/journal" }
  annotations = { service = local.service_annotations, revision = lookup(local.revision_annotations, each.key, {}) }
  depends_on  = [google_secret_manager_secret_iam_member.this]
}
