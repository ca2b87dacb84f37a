variable "name" { type = string }
# The cluster's id.
variable "cluster" { type = string }
# Zones that have the GPU.
variable "zones" { type = list(string) }
variable "nodes_per_zone" { type = number }
# Over all zones; the cluster autoscaler adds nodes while pods wait for a GPU.
variable "scale" {
  type = object({ min = number, max = number })
  validation {
    condition     = var.scale.min >= 0 && var.scale.min <= var.scale.max
    error_message = "Needs 0 <= min <= max."
  }
}
variable "machine" {
  type = object({ type = string, gpu = string, count = number })
  validation {
    condition     = startswith(var.machine.type, lookup({ nvidia-l4 = "g2-", nvidia-tesla-t4 = "n1-", nvidia-tesla-v100 = "n1-", nvidia-tesla-a100 = "a2-" }, var.machine.gpu, "?"))
    error_message = "nvidia-l4 needs a g2 machine, nvidia-tesla-t4 and -v100 an n1 machine, and nvidia-tesla-a100 an a2 machine."
  }
}
variable "disk_gb" {
  type    = number
  default = 100
  validation {
    condition     = var.disk_gb >= 50
    error_message = "Drivers, images and one model need 50 GB."
  }
}
variable "node_account" { type = string }
# Encrypts node disks; null: Google's keys.
variable "kms_key" { type = string }
