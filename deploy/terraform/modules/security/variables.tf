variable "name" { type = string }
# Regions with encrypted disks, databases and buckets.
variable "regions" { type = list(string) }
# Images that may run, such as ghcr.io/OWNER/*.
variable "image_patterns" {
  type = list(string)
  validation {
    condition     = length(var.image_patterns) > 0 && !contains(var.image_patterns, "*")
    error_message = "Name registries; * would allow every image."
  }
}
# Number of the organization's access policy, the parent of the perimeter.
variable "access_policy" {
  type = string
  validation {
    condition     = can(regex("^[0-9]+$", var.access_policy))
    error_message = "Give a number: gcloud access-context-manager policies list."
  }
}
# Access levels of those who administer the project from outside of the perimeter.
variable "access_levels" { type = list(string) }
