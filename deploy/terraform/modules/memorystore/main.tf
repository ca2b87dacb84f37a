# Redis with a password and TLS, reached from the VPC only. Terraform's state holds the password: keep it in a private bucket.
resource "google_redis_instance" "this" {
  region                  = var.region
  name                    = var.name
  tier                    = var.tier
  memory_size_gb          = var.memory_gb
  redis_version           = "REDIS_7_2"
  authorized_network      = var.network
  connect_mode            = "PRIVATE_SERVICE_ACCESS"
  auth_enabled            = true
  transit_encryption_mode = "SERVER_AUTHENTICATION"
  customer_managed_key    = var.kms_key
}

output "address" { value = "${google_redis_instance.this.host}:${google_redis_instance.this.port}" }
