# Nodes with GPUs, for workers only: other pods don't tolerate the taint.
resource "google_container_node_pool" "gpu" {
  name               = var.name
  cluster            = var.cluster
  node_locations     = var.zones
  initial_node_count = var.nodes_per_zone
  # The autoscaler changes the count; a change here would replace the pool.
  lifecycle { ignore_changes = [initial_node_count] }
  autoscaling {
    total_min_node_count = var.scale.min
    total_max_node_count = var.scale.max
    # Takes a GPU in whichever zone has one.
    location_policy = "ANY"
  }
  management {
    auto_repair  = true
    auto_upgrade = true
  }
  node_config {
    machine_type      = var.machine.type
    disk_size_gb      = var.disk_gb
    service_account   = var.node_account
    oauth_scopes      = ["https://www.googleapis.com/auth/cloud-platform"]
    boot_disk_kms_key = var.kms_key
    guest_accelerator {
      type  = var.machine.gpu
      count = var.machine.count
      gpu_driver_installation_config { gpu_driver_version = "LATEST" }
    }
    taint {
      key    = "nvidia.com/gpu"
      value  = "present"
      effect = "NO_SCHEDULE"
    }
    workload_metadata_config { mode = "GKE_METADATA" }
    # Without secure boot: unsigned GPU drivers would not load.
    shielded_instance_config { enable_integrity_monitoring = true }
  }
}
