variable "name" { type = string }
variable "regions" {
  type        = list(string)
  description = "Append only: a region's place decides its addresses."
  validation {
    condition     = length(var.regions) >= 1 && length(var.regions) <= 4 && length(toset(var.regions)) == length(var.regions)
    error_message = "Give one to four different regions."
  }
}
variable "cidr" {
  type        = string
  default     = "10.64.0.0/11"
  description = "Each region gets a quarter."
  validation {
    condition     = can(cidrhost(var.cidr, 0)) && tonumber(split("/", var.cidr)[1]) == 11
    error_message = "Give an IPv4 range of size /11."
  }
}
# Create a VPC connector in each region, for Cloud Run.
variable "connector" { type = bool }
