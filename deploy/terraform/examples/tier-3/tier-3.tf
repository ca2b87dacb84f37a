# Tier 3: tier 2, and a GPU pool. With Autopilot, pods ask for GPUs instead.
# t4 for models of 7B to 13B, v100 for 30B to 40B, a100 for 65B to 70B, quantized.
variable "gpu" { default = "t4" }

locals {
  gpus = {
    t4   = { type = "n1-standard-4", gpu = "nvidia-tesla-t4", count = 1 }
    v100 = { type = "n1-standard-8", gpu = "nvidia-tesla-v100", count = 1 }
    a100 = { type = "a2-highgpu-2g", gpu = "nvidia-tesla-a100", count = 2 }
  }
}

module "gpu_pool" {
  source         = "../../modules/gpu-pool"
  count          = var.autopilot ? 0 : 1
  name           = "gpu-pool"
  cluster        = module.gke.id
  node_account   = module.gke.node_account
  zones          = ["us-central1-a", "us-central1-b"]
  nodes_per_zone = 1
  scale          = { min = 1, max = 5 }
  machine        = local.gpus[var.gpu]
  disk_gb        = 100
  kms_key        = lookup(local.kms_keys, "us-central1", null)
}
