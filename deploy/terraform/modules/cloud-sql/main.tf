# PostgreSQL in two zones of the region, with daily backups and point-in-time recovery, and replicas in other regions.
resource "google_sql_database_instance" "primary" {
  name                = var.name
  region              = var.region
  database_version    = "POSTGRES_17"
  encryption_key_name = lookup(var.kms_keys, var.region, null)
  deletion_protection = true
  settings {
    tier              = var.machine
    edition           = "ENTERPRISE"
    availability_type = "REGIONAL"
    backup_configuration {
      enabled                        = true
      start_time                     = "02:00"
      point_in_time_recovery_enabled = true
      backup_retention_settings { retained_backups = var.backup_days }
    }
    ip_configuration {
      ipv4_enabled    = false
      private_network = var.network
      ssl_mode        = "ENCRYPTED_ONLY"
    }
  }
}

resource "google_sql_database" "aimesh" {
  name     = "aimesh"
  instance = google_sql_database_instance.primary.name
}

resource "google_sql_database_instance" "standby" {
  for_each             = toset(var.standby_regions)
  name                 = "${var.name}-${each.key}"
  region               = each.key
  database_version     = "POSTGRES_17"
  master_instance_name = google_sql_database_instance.primary.name
  encryption_key_name  = lookup(var.kms_keys, each.key, null)
  deletion_protection  = true
  settings {
    tier              = var.machine
    edition           = "ENTERPRISE"
    availability_type = "ZONAL"
    ip_configuration {
      ipv4_enabled    = false
      private_network = var.network
      ssl_mode        = "ENCRYPTED_ONLY"
    }
  }
}

output "addresses" {
  value = { for instance in concat([google_sql_database_instance.primary], values(google_sql_database_instance.standby)) : instance.region => instance.private_ip_address }
}
