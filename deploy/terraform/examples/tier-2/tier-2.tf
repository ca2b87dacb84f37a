# Tier 2: tier 1, and a cluster for CPU workloads.
# Who may reach the control plane, such as { office = "203.0.113.0/24" }.
variable "authorized_networks" { type = map(string) }
variable "autopilot" { default = false }

module "gke" {
  source               = "../../modules/gke"
  project              = var.project
  name                 = "afpi-prod"
  region               = "us-central1"
  network              = module.network.id
  subnet               = module.network.subnets["us-central1"]
  authorized_networks  = var.authorized_networks
  autopilot            = var.autopilot
  kms_key              = lookup(local.kms_keys, "us-central1", null)
  binary_authorization = local.binary_authorization
  system_pool = {
    name           = "default-pool", machine_type = "n1-standard-4", zones = ["us-central1-a", "us-central1-b", "us-central1-c"],
    nodes_per_zone = 1, min_nodes = 1, max_nodes = 10
  }
}
