variable "project" { type = string }
variable "name" { type = string }
variable "region" { type = string }
variable "network" { type = string }
# It has the secondary ranges "pods" and "services".
variable "subnet" { type = string }
# Google manages the nodes: there is no system pool, and pods ask for GPUs with a node selector.
variable "autopilot" { type = bool }
# Encrypts node disks and Kubernetes secrets; null: Google's keys.
variable "kms_key" { type = string }
variable "binary_authorization" { type = bool }
# name => CIDR of those who may reach the control plane.
variable "authorized_networks" {
  type = map(string)
  validation {
    condition     = length(var.authorized_networks) > 0 && alltrue([for cidr in values(var.authorized_networks) : can(cidrhost(cidr, 0)) && !endswith(cidr, "/0")])
    error_message = "Give at least one CIDR, and not the whole internet."
  }
}
# The autoscaler's minimum and maximum count over all zones.
variable "system_pool" {
  type = object({ name = string, machine_type = string, zones = list(string), nodes_per_zone = number, min_nodes = number, max_nodes = number })
  validation {
    condition     = var.system_pool.min_nodes >= 1 && var.system_pool.min_nodes <= var.system_pool.max_nodes
    error_message = "Needs 1 <= min_nodes <= max_nodes."
  }
}
