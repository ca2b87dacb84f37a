# Tier 4: tier 3, a standby in us-east1, our own keys, only our images, and a perimeter around the data.
# Number of the organization's access policy.
variable "access_policy" { type = string }
# Access levels of administrators outside of the perimeter.
variable "access_levels" { default = [] }
# Where the mesh machine runs; docs/howto/gcp.md says when to change it.
variable "active_region" { default = "us-central1" }

locals {
  regions              = ["us-central1", "us-east1"]
  active               = var.active_region
  cache_tier           = "STANDARD_HA"
  kms_keys             = module.security.keys
  binary_authorization = true
}

module "security" {
  source         = "../../modules/security"
  name           = "aimesh"
  regions        = local.regions
  image_patterns = [for region in local.regions : "${region}-docker.pkg.dev/${var.project}/**"]
  access_policy  = var.access_policy
  access_levels  = var.access_levels
  depends_on     = [google_project_service.apis]
}

module "standby_gke" {
  source               = "../../modules/gke"
  project              = var.project
  name                 = "afpi-standby"
  region               = "us-east1"
  network              = module.network.id
  subnet               = module.network.subnets["us-east1"]
  authorized_networks  = var.authorized_networks
  autopilot            = var.autopilot
  kms_key              = local.kms_keys["us-east1"]
  binary_authorization = true
  system_pool = {
    name           = "default-pool", machine_type = "n1-standard-4", zones = ["us-east1-b", "us-east1-c", "us-east1-d"],
    nodes_per_zone = 1, min_nodes = 1, max_nodes = 10
  }
}

# Empty until the cluster's workers need it.
module "standby_gpu_pool" {
  source         = "../../modules/gpu-pool"
  count          = var.autopilot ? 0 : 1
  name           = "gpu-pool"
  cluster        = module.standby_gke.id
  node_account   = module.standby_gke.node_account
  zones          = ["us-east1-c", "us-east1-d"]
  nodes_per_zone = 0
  scale          = { min = 0, max = 5 }
  machine        = local.gpus[var.gpu]
  disk_gb        = 100
  kms_key        = local.kms_keys["us-east1"]
}
