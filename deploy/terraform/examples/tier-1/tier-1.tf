# Tier 1: web and gateway on Cloud Run, everything else that they need, and no GPU. docs/howto/gcp.md has the steps.
variable "project" { default = "afpi-production" }
variable "hosts" { default = { web = "afpip.com", api = "api.afpip.com" } }
variable "release" { type = string } # version of aimesh, such as 1.2.3
variable "owner" { type = string }   # of the repository that released it: the images are ghcr.io/OWNER/…
# Who may open the web pages, such as group:team@example.org.
variable "iap_members" { type = list(string) }
# false for the first apply: Cloud Run can't start before its secrets have values.
variable "serve" { default = true }

provider "google" { project = var.project }

data "google_project" "this" {}

resource "google_project_service" "apis" {
  for_each = toset([
    "artifactregistry", "binaryauthorization", "cloudkms", "compute", "container", "iap", "redis", "run", "secretmanager",
    "servicenetworking", "sqladmin", "storage", "vpcaccess",
  ])
  service            = "${each.key}.googleapis.com"
  disable_on_destroy = false
}

module "network" {
  source     = "../../modules/network"
  name       = "aimesh"
  regions    = local.regions
  connector  = true
  depends_on = [google_project_service.apis]
}

module "cloud_sql" {
  source          = "../../modules/cloud-sql"
  name            = "aimesh"
  region          = local.regions[0]
  standby_regions = slice(local.regions, 1, length(local.regions))
  network         = module.network.id
  backup_days     = 7
  kms_keys        = local.kms_keys
}

module "memorystore" {
  source    = "../../modules/memorystore"
  for_each  = toset(local.regions)
  name      = "aimesh"
  region    = each.key
  network   = module.network.id
  memory_gb = 1
  tier      = local.cache_tier
  kms_key   = lookup(local.kms_keys, each.key, null)
}

# Cloud Run takes images from Artifact Registry only.
resource "google_artifact_registry_repository" "ghcr" {
  for_each      = toset(local.regions)
  location      = each.key
  repository_id = "ghcr"
  format        = "DOCKER"
  mode          = "REMOTE_REPOSITORY"
  kms_key_name  = lookup(local.kms_keys, each.key, null)
  remote_repository_config {
    common_repository { uri = "https://ghcr.io" }
  }
}

resource "google_storage_bucket" "backups" {
  name                        = "${var.project}-aimesh-backups"
  location                    = local.regions[0]
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  versioning { enabled = true }
  dynamic "encryption" {
    for_each = values({ for region, key in local.kms_keys : region => key if region == local.regions[0] })
    content { default_kms_key_name = encryption.value }
  }
}

module "edge" {
  source      = "../../modules/edge"
  name        = "aimesh"
  hosts       = var.hosts
  regions     = local.regions
  services    = { web = "frontend", api = "backend" }
  iap_members = var.iap_members
}

output "address" { value = module.edge.address }

# For the mesh machine's .env, in the active region.
output "env" {
  value = {
    DATABASE_HOST   = module.cloud_sql.addresses[local.active]
    REDIS_HOST      = module.memorystore[local.active].address
    PUBLIC_NATS_URL = local.nats_url
    IAP_AUDIENCE    = "/projects/${data.google_project.this.number}/global/backendServices/${module.edge.web_backend}"
    PUBLIC_URL      = "https://${var.hosts.web}"
  }
}
