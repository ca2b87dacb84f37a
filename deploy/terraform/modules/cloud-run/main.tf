# A service of one of our images on Cloud Run, open to the load balancer and the VPC only. The resource is of API v1, because
# that of v2 has no CPU and concurrency targets yet (hashicorp/terraform-provider-google#28324).
resource "google_cloud_run_service" "this" {
  name     = var.name
  location = var.region
  metadata { annotations = merge({ "run.googleapis.com/ingress" = "internal-and-cloud-load-balancing" }, var.annotations.service) }
  template {
    metadata {
      annotations = merge({
        "autoscaling.knative.dev/minScale"              = var.size.min
        "autoscaling.knative.dev/maxScale"              = var.size.max
        "run.googleapis.com/scaling-cpu-target"         = var.size.cpu_target
        "run.googleapis.com/scaling-concurrency-target" = var.size.target / var.size.concurrency
        # A node of the mesh works between requests, too.
        "run.googleapis.com/cpu-throttling"        = "false"
        "run.googleapis.com/execution-environment" = "gen2"
        "run.googleapis.com/vpc-access-connector"  = var.connector
        "run.googleapis.com/vpc-access-egress"     = "all-traffic"
      }, var.annotations.revision)
    }
    spec {
      service_account_name  = var.account
      container_concurrency = var.size.concurrency
      timeout_seconds       = var.size.timeout
      containers {
        image   = var.image
        command = ["sh", "-ec", var.command]
        ports { container_port = var.port }
        resources { limits = { cpu = var.size.cpu, memory = var.size.memory } }
        dynamic "env" {
          for_each = var.environment
          content {
            name  = env.key
            value = env.value
          }
        }
        dynamic "env" {
          for_each = var.secrets
          content {
            name = env.key
            value_from {
              secret_key_ref {
                name = env.value
                key  = "latest"
              }
            }
          }
        }
        startup_probe {
          period_seconds    = 5
          failure_threshold = 24
          http_get { path = "/readyz" }
        }
        liveness_probe {
          http_get { path = "/healthz" }
        }
        dynamic "volume_mounts" {
          for_each = var.nfs[*]
          content {
            name       = "journal"
            mount_path = "/journal"
          }
        }
      }
      dynamic "volumes" {
        for_each = var.nfs[*]
        content {
          name = "journal"
          nfs {
            server = volumes.value.server
            path   = volumes.value.path
          }
        }
      }
    }
  }
}

# The load balancer does not authenticate by IAM; IAP or an API key decides about the user.
resource "google_cloud_run_service_iam_member" "load_balancer" {
  location = var.region
  service  = google_cloud_run_service.this.name
  role     = "roles/run.invoker"
  member   = "allUsers"
}

output "url" { value = google_cloud_run_service.this.status[0].url }
