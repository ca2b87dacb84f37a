variable "region" { type = string }
variable "name" { type = string }
variable "network" { type = string }
variable "memory_gb" {
  type = number
  validation {
    condition     = var.memory_gb >= 1 && var.memory_gb <= 300
    error_message = "Memorystore has 1 to 300 GB."
  }
}
variable "tier" {
  type        = string
  description = "STANDARD_HA has a replica. Without one, a failure logs users out and resets the hour's counts."
  validation {
    condition     = contains(["BASIC", "STANDARD_HA"], var.tier)
    error_message = "Give BASIC or STANDARD_HA."
  }
}
# null: Google's keys.
variable "kms_key" { type = string }
