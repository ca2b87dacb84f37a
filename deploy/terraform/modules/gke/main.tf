# A private regional cluster, Standard or Autopilot. Pods get Google credentials through Workload Identity; there are no key files.
resource "google_service_account" "nodes" {
  account_id = "${substr(var.name, 0, 24)}-nodes"
}

resource "google_project_iam_member" "nodes" {
  for_each = toset(["roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader"])
  project  = var.project
  role     = each.key
  member   = google_service_account.nodes.member
}

resource "google_container_cluster" "this" {
  name                     = var.name
  location                 = var.region
  network                  = var.network
  subnetwork               = var.subnet
  deletion_protection      = true
  enable_autopilot         = var.autopilot ? true : null
  remove_default_node_pool = var.autopilot ? null : true
  initial_node_count       = var.autopilot ? null : 1
  datapath_provider        = var.autopilot ? null : "ADVANCED_DATAPATH"
  private_cluster_config { enable_private_nodes = true }
  master_authorized_networks_config {
    dynamic "cidr_blocks" {
      for_each = var.authorized_networks
      content {
        display_name = cidr_blocks.key
        cidr_block   = cidr_blocks.value
      }
    }
  }
  ip_allocation_policy {
    cluster_secondary_range_name  = "pods"
    services_secondary_range_name = "services"
  }
  # Autopilot always has Workload Identity, and the provider refuses the block.
  dynamic "workload_identity_config" {
    for_each = var.autopilot ? [] : [1]
    content { workload_pool = "${var.project}.svc.id.goog" }
  }
  # Autopilot takes the account and the key of its nodes from here.
  dynamic "cluster_autoscaling" {
    for_each = var.autopilot ? [1] : []
    content {
      auto_provisioning_defaults {
        service_account   = google_service_account.nodes.email
        boot_disk_kms_key = var.kms_key
      }
    }
  }
  monitoring_config {
    managed_prometheus { enabled = true }
  }
  release_channel { channel = "REGULAR" }
  binary_authorization { evaluation_mode = var.binary_authorization ? "PROJECT_SINGLETON_POLICY_ENFORCE" : "DISABLED" }
  database_encryption {
    state    = var.kms_key == null ? "DECRYPTED" : "ENCRYPTED"
    key_name = var.kms_key
  }
}

resource "google_container_node_pool" "system" {
  count              = var.autopilot ? 0 : 1
  name               = var.system_pool.name
  cluster            = google_container_cluster.this.id
  node_locations     = var.system_pool.zones
  initial_node_count = var.system_pool.nodes_per_zone
  # The autoscaler changes the count; a change here would replace the pool.
  lifecycle { ignore_changes = [initial_node_count] }
  autoscaling {
    total_min_node_count = var.system_pool.min_nodes
    total_max_node_count = var.system_pool.max_nodes
  }
  management {
    auto_repair  = true
    auto_upgrade = true
  }
  node_config {
    machine_type      = var.system_pool.machine_type
    service_account   = google_service_account.nodes.email
    oauth_scopes      = ["https://www.googleapis.com/auth/cloud-platform"]
    boot_disk_kms_key = var.kms_key
    workload_metadata_config { mode = "GKE_METADATA" }
    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
  }
}

output "id" { value = google_container_cluster.this.id }
output "node_account" { value = google_service_account.nodes.email }
