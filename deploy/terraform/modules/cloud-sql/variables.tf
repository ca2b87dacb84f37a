variable "region" { type = string }
variable "name" { type = string }
variable "network" { type = string }
variable "machine" {
  type    = string
  default = "db-custom-2-7680"
  validation {
    condition     = startswith(var.machine, "db-custom-") || startswith(var.machine, "db-perf-optimized-")
    error_message = "PostgreSQL has machine types like db-custom-2-7680, and no db-n1 types."
  }
}
variable "backup_days" {
  type = number
  validation {
    condition     = var.backup_days >= 1 && var.backup_days <= 365
    error_message = "Keep 1 to 365 daily backups."
  }
}
# Region => key of its instance; a missing region uses Google's keys. An instance's key can't change.
variable "kms_keys" { type = map(string) }
# Regions with a read replica, which `gcloud sql instances promote-replica` makes a primary.
variable "standby_regions" { type = list(string) }
