variable "name" { type = string }
variable "hosts" {
  type = object({ web = string, api = string })
  validation {
    condition     = alltrue([for host in values(var.hosts) : can(regex("^[a-z0-9-]+(\\.[a-z0-9-]+)+$", host))]) && var.hosts.web != var.hosts.api
    error_message = "Give two different host names."
  }
}
# Regions with the Cloud Run services. A request goes to the nearest one.
variable "regions" { type = list(string) }
# Names of the Cloud Run services.
variable "services" { type = object({ web = string, api = string }) }
# Who may open the web pages, such as group:team@example.org.
variable "iap_members" { type = list(string) }
