# Waits for the peering: without it, Cloud SQL and Memorystore get no address.
output "id" { value = google_service_networking_connection.services.network }
output "subnets" { value = { for region, subnet in google_compute_subnetwork.nodes : region => subnet.id } }

output "connectors" { value = { for region, connector in google_vpc_access_connector.this : region => connector.id } }
output "ranges" { value = local.ranges }
