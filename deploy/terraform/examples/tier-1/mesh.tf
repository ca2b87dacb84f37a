# The mesh machine: auth, metrics and NATS with compose, and the gateways' journals, which Cloud Run mounts. Standby machines are off.
locals { nats_url = "tls://${google_compute_address.mesh[local.active].address}:4222" }

resource "google_service_account" "mesh" { account_id = "aimesh-mesh" }

resource "google_storage_bucket_iam_member" "mesh" {
  bucket = google_storage_bucket.backups.name
  role   = "roles/storage.objectAdmin"
  member = google_service_account.mesh.member
}

resource "google_compute_address" "mesh" {
  for_each     = toset(local.regions)
  name         = "mesh"
  region       = each.key
  address_type = "INTERNAL"
  subnetwork   = module.network.subnets[each.key]
}

# Holds auth's keys and the journals, so it survives the machine.
resource "google_compute_disk" "mesh" {
  for_each = toset(local.regions)
  name     = "mesh"
  zone     = "${each.key}-b"
  type     = "pd-balanced"
  size     = 50
  dynamic "disk_encryption_key" {
    for_each = values({ for region, key in local.kms_keys : region => key if region == each.key })
    content { kms_key_self_link = disk_encryption_key.value }
  }
  lifecycle { prevent_destroy = true }
}

resource "google_compute_instance" "mesh" {
  for_each                  = toset(local.regions)
  name                      = "mesh"
  zone                      = "${each.key}-b"
  machine_type              = "e2-standard-2"
  tags                      = ["mesh"]
  desired_status            = each.key == local.active ? "RUNNING" : "TERMINATED"
  allow_stopping_for_update = true
  metadata = {
    enable-oslogin         = "TRUE"
    block-project-ssh-keys = "TRUE"
    # Not metadata_startup_script: a change of that replaces the machine.
    startup-script = templatefile("${path.module}/../tier-1/mesh.sh", {
      address    = google_compute_address.mesh[each.key].address
      connectors = join(" ", [for range in values(module.network.ranges) : range.connector])
    })
  }
  boot_disk {
    kms_key_self_link = lookup(local.kms_keys, each.key, null)
    initialize_params { image = "ubuntu-os-cloud/ubuntu-2404-lts-amd64" }
  }
  attached_disk {
    source      = google_compute_disk.mesh[each.key].id
    device_name = "mesh"
  }
  network_interface {
    subnetwork = module.network.subnets[each.key]
    network_ip = google_compute_address.mesh[each.key].address
  }
  service_account {
    email  = google_service_account.mesh.email
    scopes = ["cloud-platform"]
  }
  shielded_instance_config { enable_secure_boot = true }
}

# NATS for Cloud Run and pods; the journals (NFS 3) for Cloud Run; SSH through IAP.
resource "google_compute_firewall" "mesh" {
  for_each = {
    nats = { ports = ["4222"], sources = [for range in values(module.network.ranges) : range.all] }
    nfs  = { ports = ["111", "2049", "20048"], sources = [for range in values(module.network.ranges) : range.connector] }
    ssh  = { ports = ["22"], sources = ["35.235.240.0/20"] }
  }
  name          = "mesh-${each.key}"
  network       = module.network.id
  target_tags   = ["mesh"]
  source_ranges = each.value.sources
  allow {
    protocol = "tcp"
    ports    = each.value.ports
  }
}
