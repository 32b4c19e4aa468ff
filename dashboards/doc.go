// Package dashboards holds what Prometheus and Grafana need to watch Waybill:
// recording rules, alerts with their tests and runbooks, dashboards, and the
// provisioning of docker-compose.yml.
//
// It exists as a Go package for its tests alone. They promise that every metric,
// label, fact and query that a panel or a rule names exists, that every alert
// has a runbook, a case in which it fires and one in which it does not, and that
// the files load in the real programs.
//
// To add a panel, export the dashboard from Grafana with variables in place of
// data sources, and give the panel a unit, a description and a link. To add an
// alert, add its runbook and its cases in alerts_test.yaml; the tests name what
// is missing.
package dashboards
