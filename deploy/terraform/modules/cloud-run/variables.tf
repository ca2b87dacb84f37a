variable "region" { type = string }
variable "name" { type = string }
# Email of the service account that the service runs as.
variable "account" { type = string }
variable "image" {
  type = string
  validation {
    condition     = can(regex("[:@][^/]+$", var.image)) && !endswith(var.image, ":latest")
    error_message = "Give a tag or digest, not latest."
  }
}
# A shell command.
variable "command" { type = string }
variable "port" { type = number }
variable "size" {
  type = object({ cpu = number, memory = string, timeout = number, min = number, max = number, concurrency = number, target = number, cpu_target = number })
  validation {
    condition     = var.size.min >= 1 && var.size.min <= var.size.max && var.size.concurrency <= 1000
    error_message = "Needs 1 <= min <= max: a node stays in the mesh without requests. Cloud Run takes at most 1,000 requests at once."
  }
  validation {
    condition     = alltrue([for share in [var.size.target / var.size.concurrency, var.size.cpu_target] : share >= 0.1 && share <= 0.95])
    error_message = "Cloud Run takes targets of 10 % to 95 %."
  }
}
variable "environment" { type = map(string) }
# Environment variable => name of a secret in Secret Manager.
variable "secrets" { type = map(string) }
variable "connector" { type = string }
# A folder of an NFS server for /journal; null: none.
variable "nfs" { type = object({ server = string, path = string }) }
# More annotations, of the service and of its revisions.
variable "annotations" { type = object({ service = map(string), revision = map(string) }) }
