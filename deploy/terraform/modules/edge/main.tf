# One global load balancer: TLS, Cloud Armor, IAP in front of the web pages, and Cloud CDN for their static files.
resource "google_compute_global_address" "this" { name = var.name }

resource "google_compute_region_network_endpoint_group" "this" {
  for_each              = { for pair in setproduct(["web", "api"], var.regions) : join("-", pair) => { service = pair[0], region = pair[1] } }
  name                  = "${var.name}-${each.key}"
  region                = each.value.region
  network_endpoint_type = "SERVERLESS"
  cloud_run { service = var.services[each.value.service] }
}

# Has no rules against SQL or scripts, because prompts contain both.
resource "google_compute_security_policy" "this" { name = var.name }

resource "google_compute_security_policy_rule" "throttle" {
  security_policy = google_compute_security_policy.this.name
  priority        = 1000
  action          = "throttle"
  match {
    versioned_expr = "SRC_IPS_V1"
    config { src_ip_ranges = ["*"] }
  }
  rate_limit_options {
    enforce_on_key = "IP"
    conform_action = "allow"
    exceed_action  = "deny(429)"
    rate_limit_threshold {
      count        = 1200
      interval_sec = 60
    }
  }
}

resource "google_compute_backend_service" "this" {
  # Cloud CDN doesn't work with IAP, so static files have their own backend. They are the same for everyone.
  for_each              = { web = "web", static = "web", api = "api" }
  name                  = "${var.name}-${each.key}"
  load_balancing_scheme = "EXTERNAL_MANAGED"
  protocol              = "HTTPS"
  security_policy       = google_compute_security_policy.this.id
  enable_cdn            = each.key == "static"
  iap { enabled = each.key == "web" }
  log_config { enable = true }
  dynamic "backend" {
    for_each = var.regions
    content { group = google_compute_region_network_endpoint_group.this["${each.value}-${backend.value}"].id }
  }
}

resource "google_iap_web_backend_service_iam_binding" "web" {
  web_backend_service = google_compute_backend_service.this["web"].name
  role                = "roles/iap.httpsResourceAccessor"
  members             = var.iap_members
}

resource "google_compute_url_map" "this" {
  name            = var.name
  default_service = google_compute_backend_service.this["api"].id
  host_rule {
    hosts        = [var.hosts.web]
    path_matcher = "web"
  }
  path_matcher {
    name            = "web"
    default_service = google_compute_backend_service.this["web"].id
    path_rule {
      paths   = ["/static/*"]
      service = google_compute_backend_service.this["static"].id
    }
  }
}

resource "google_compute_managed_ssl_certificate" "this" {
  name = "${var.name}-${substr(md5(jsonencode(var.hosts)), 0, 8)}"
  managed { domains = values(var.hosts) }
  lifecycle { create_before_destroy = true }
}

# Google's strictest: TLS 1.2 and 1.3.
resource "google_compute_ssl_policy" "this" {
  name            = var.name
  profile         = "RESTRICTED"
  min_tls_version = "TLS_1_2"
}

resource "google_compute_target_https_proxy" "this" {
  name             = var.name
  url_map          = google_compute_url_map.this.id
  ssl_certificates = [google_compute_managed_ssl_certificate.this.id]
  ssl_policy       = google_compute_ssl_policy.this.id
}

resource "google_compute_global_forwarding_rule" "https" {
  name                  = var.name
  load_balancing_scheme = "EXTERNAL_MANAGED"
  ip_address            = google_compute_global_address.this.id
  port_range            = "443"
  target                = google_compute_target_https_proxy.this.id
}

output "address" { value = google_compute_global_address.this.address }
output "web_backend" { value = google_compute_backend_service.this["web"].generated_id }
