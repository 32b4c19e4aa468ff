// Command gpx_waybill is the backend of the Waybill data source: a process that
// Grafana starts, and asks over gRPC. All of it is in package plugin.
package main

import (
	"os"

	"github.com/grafana/grafana-plugin-sdk-go/backend/datasource"
	"github.com/grafana/grafana-plugin-sdk-go/backend/log"

	"waybill/grafana-plugin/pkg/plugin"
)

func main() {
	if err := datasource.Manage(plugin.ID, plugin.New, datasource.ManageOpts{}); err != nil {
		log.DefaultLogger.Error("plugin ended", "error", err)
		os.Exit(1)
	}
}
