package plugin

import (
	"encoding/json"
	"net/http"

	"github.com/grafana/grafana-plugin-sdk-go/backend/log"

	"waybill/logtrack/trackapi"
)

// resources serves what the editor's pickers and variables ask for:
//
//	GET /values?field=&prefix=&from=&to=   values of a field, the frequent first
//	GET /connectors                        the connectors' names
func (d *Datasource) resources() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /values", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Get("field") == "" {
			d.refuse(w, badQuery("values of which field? name it in the parameter \"field\""))
			return
		}
		if q.Get("field") == "domain" { // as the filter is called
			q.Set("field", "recipient_domain")
		}
		ask, p := trackapi.ParseValuesQuery(q)
		if p != nil {
			d.refuse(w, p)
			return
		}
		d.serveValues(w, r, ask)
	})
	mux.HandleFunc("GET /connectors", func(w http.ResponseWriter, r *http.Request) {
		d.serveValues(w, r, trackapi.ValuesQuery{Field: "connector"})
	})
	return mux
}

func (d *Datasource) serveValues(w http.ResponseWriter, r *http.Request, q trackapi.ValuesQuery) {
	if d.broken != nil {
		d.refuse(w, d.broken)
		return
	}
	values, err := d.api.Values(r.Context(), q)
	if err != nil {
		d.refuse(w, err)
		return
	}
	if values.Values == nil {
		values.Values = []string{}
	}
	write(w, http.StatusOK, values)
}

// refuse answers with the failure's status and, as message, what to do.
func (d *Datasource) refuse(w http.ResponseWriter, err error) {
	status, _, text := d.explain(err)
	write(w, int(status), trackapi.Problem{Title: text, Status: int(status)})
}

func write(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		log.DefaultLogger.Debug("resource not written", "error", err)
	}
}
