package admin

import (
	"encoding/json"
	"mime"
	"net/http"
	"path/filepath"

	"waybill/logtrack/trackapi"
	"waybill/logtrack/trackhttp"
	"waybill/relay/event"
)

// backup writes a backup where the caller says, on this host, and states who
// wanted it.
func (h *Handler) backup(w http.ResponseWriter, r *http.Request) {
	if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != "application/json" {
		problem(w, http.StatusUnsupportedMediaType, "Want JSON", "", "", "send Content-Type: application/json")
		return
	}
	var in trackapi.BackupRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		badJSON(w, err)
		return
	}
	if !filepath.IsAbs(in.Dir) {
		trackhttp.WriteProblem(w, trackapi.BadParameter("dir", "not an absolute path", "name a new directory on the host of the relay"))
		return
	}
	fact := event.AdminActed{Actor: actor(r), Action: "backup", Filter: "dir=" + in.Dir, Result: "ok", ClientIP: clientIP(r)}
	done, err := h.opts.Backup(r.Context(), filepath.Clean(in.Dir))
	if err != nil {
		fact.Result, fact.Reason = "error", err.Error()
	} else {
		fact.Affected = done.Messages
	}
	h.opts.Emitter.Source(event.SourceAdmin).Emit(fact)
	if err != nil {
		problem(w, http.StatusInternalServerError, "There is no backup", err.Error(), "", "")
		return
	}
	trackhttp.WriteJSON(w, http.StatusOK, done)
}
