# One VPC with a subnet, Cloud NAT and, for Cloud Run, a VPC connector in each region. Nothing in it has a public address.
locals {
  ranges = { for index, region in var.regions : region => {
    all       = cidrsubnet(var.cidr, 2, index)
    pods      = cidrsubnet(cidrsubnet(var.cidr, 2, index), 1, 0)
    services  = cidrsubnet(cidrsubnet(var.cidr, 2, index), 3, 4)
    nodes     = cidrsubnet(cidrsubnet(var.cidr, 2, index), 7, 96)
    connector = cidrsubnet(cidrsubnet(var.cidr, 2, index), 15, 28672)
  } }
}

resource "google_compute_network" "this" {
  name                    = var.name
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "nodes" {
  for_each                 = local.ranges
  name                     = "${var.name}-${each.key}"
  region                   = each.key
  network                  = google_compute_network.this.id
  ip_cidr_range            = each.value.nodes
  private_ip_google_access = true
  secondary_ip_range {
    range_name    = "pods"
    ip_cidr_range = each.value.pods
  }
  secondary_ip_range {
    range_name    = "services"
    ip_cidr_range = each.value.services
  }
  log_config { flow_sampling = 0.1 }
}

resource "google_compute_router" "this" {
  for_each = local.ranges
  name     = "${var.name}-${each.key}"
  region   = each.key
  network  = google_compute_network.this.id
}

resource "google_compute_router_nat" "this" {
  for_each                           = google_compute_router.this
  name                               = each.value.name
  region                             = each.key
  router                             = each.value.name
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"
}

# The addresses of Cloud SQL and Memorystore.
resource "google_compute_global_address" "services" {
  name          = "${var.name}-services"
  purpose       = "VPC_PEERING"
  address_type  = "INTERNAL"
  prefix_length = 20
  network       = google_compute_network.this.id
}

resource "google_service_networking_connection" "services" {
  network                 = google_compute_network.this.id
  service                 = "servicenetworking.googleapis.com"
  reserved_peering_ranges = [google_compute_global_address.services.name]
}

resource "google_vpc_access_connector" "this" {
  for_each      = { for region, range in local.ranges : region => range.connector if var.connector }
  name          = "run-${each.key}"
  region        = each.key
  network       = google_compute_network.this.id
  ip_cidr_range = each.value
  min_instances = 2
  max_instances = 10
}
