"""Pages for tests/acceptance/test_every_page.py that no tab leads to."""

OF_ADMINISTRATORS = {
    "admin-cost": "/admin/cost",
    "admin-cost-wrong": "/admin/cost?utilization=2",
    "admin-statement": "/admin/nodes/statement",
}
OF_OWNERS = {"machines-statement": "/nodes/statement"}
