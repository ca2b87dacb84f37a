# The demo: one cluster with a system pool and 1 to 5 L4 nodes. The chart's ci/demo.yaml runs in it.
variable "project" { type = string }
# Who may reach the control plane, such as { office = "203.0.113.0/24" }.
variable "authorized_networks" { type = map(string) }
variable "autopilot" { default = false }

provider "google" { project = var.project }

resource "google_project_service" "apis" {
  for_each           = toset(["compute.googleapis.com", "container.googleapis.com", "servicenetworking.googleapis.com"])
  service            = each.key
  disable_on_destroy = false
}

module "network" {
  source     = "../../modules/network"
  name       = "ai-inference-demo"
  regions    = ["us-east1"]
  connector  = false
  depends_on = [google_project_service.apis]
}

module "gke" {
  source               = "../../modules/gke"
  project              = var.project
  name                 = "ai-inference-demo-v1"
  region               = "us-east1"
  network              = module.network.id
  subnet               = module.network.subnets["us-east1"]
  authorized_networks  = var.authorized_networks
  autopilot            = var.autopilot
  kms_key              = null
  binary_authorization = false
  system_pool = {
    name = "system", machine_type = "e2-standard-4", zones = ["us-east1-b"], nodes_per_zone = 1, min_nodes = 1, max_nodes = 3
  }
}

# Pods that wait for a GPU make the autoscaler add a node; the chart adds pods while requests wait.
module "accelerator_pool" {
  source         = "../../modules/gpu-pool"
  count          = var.autopilot ? 0 : 1
  name           = "accelerator"
  cluster        = module.gke.id
  node_account   = module.gke.node_account
  zones          = ["us-east1-b"]
  nodes_per_zone = 1
  scale          = { min = 1, max = 5 }
  machine        = { type = "g2-standard-12", gpu = "nvidia-l4", count = 1 }
  kms_key        = null
}
