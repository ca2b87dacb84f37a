# What tier 4 adds: keys (AES-256) in KMS, which images may run, and a perimeter around the project's data.
data "google_project" "this" {}

locals {
  # Google's accounts that encrypt disks, node disks and Kubernetes secrets, databases, caches, buckets, and images of Cloud Run.
  agents = [
    "compute-system", "container-engine-robot", "gcp-sa-artifactregistry", "gcp-sa-cloud-sql", "cloud-redis", "gs-project-accounts", "serverless-robot-prod",
  ]
}

resource "google_kms_key_ring" "this" {
  for_each = toset(var.regions)
  name     = var.name
  location = each.key
}

resource "google_kms_crypto_key" "this" {
  for_each        = google_kms_key_ring.this
  name            = "data"
  key_ring        = each.value.id
  rotation_period = "7776000s"
  version_template {
    algorithm        = "GOOGLE_SYMMETRIC_ENCRYPTION"
    protection_level = "HSM"
  }
  # Without the key, the data is lost.
  lifecycle { prevent_destroy = true }
}

resource "google_kms_crypto_key_iam_member" "agents" {
  for_each      = { for pair in setproduct(var.regions, local.agents) : join("-", pair) => { region = pair[0], agent = pair[1] } }
  crypto_key_id = google_kms_crypto_key.this[each.value.region].id
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:service-${data.google_project.this.number}@${each.value.agent}.iam.gserviceaccount.com"
}

resource "google_binary_authorization_policy" "this" {
  global_policy_evaluation_mode = "ENABLE"
  default_admission_rule {
    evaluation_mode  = "ALWAYS_DENY"
    enforcement_mode = "ENFORCED_BLOCK_AND_AUDIT_LOG"
  }
  dynamic "admission_whitelist_patterns" {
    for_each = var.image_patterns
    content { name_pattern = admission_whitelist_patterns.value }
  }
}

resource "google_access_context_manager_service_perimeter" "this" {
  parent = "accessPolicies/${var.access_policy}"
  name   = "accessPolicies/${var.access_policy}/servicePerimeters/${replace(var.name, "-", "_")}"
  title  = var.name
  status {
    resources     = ["projects/${data.google_project.this.number}"]
    access_levels = var.access_levels
    restricted_services = [
      "artifactregistry.googleapis.com", "cloudkms.googleapis.com", "container.googleapis.com", "redis.googleapis.com", "run.googleapis.com",
      "secretmanager.googleapis.com", "sqladmin.googleapis.com", "storage.googleapis.com",
    ]
  }
}

# Waits for the grants: nothing can be encrypted before them.
output "keys" {
  value      = { for region, key in google_kms_crypto_key.this : region => key.id }
  depends_on = [google_kms_crypto_key_iam_member.agents]
}
