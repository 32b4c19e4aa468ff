package admin

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/logtrack/trackhttp"
	"waybill/relay/event"
	"waybill/relay/policy"
	"waybill/relay/transcript"
)

// heartbeat keeps a stream alive on which nothing is said.
const heartbeat = 15 * time.Second

// watch serves conversations line by line while they happen.
func (h *Handler) watch(w http.ResponseWriter, r *http.Request) {
	filter, p := protocolFilter(r)
	if p != nil {
		trackhttp.WriteProblem(w, p)
		return
	}
	live, err := h.opts.Tap.Watch(filter)
	if err != nil {
		w.Header().Set("Retry-After", "5")
		problem(w, http.StatusServiceUnavailable, "No live stream now", err.Error(), "", "")
		return
	}
	defer live.Close()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	send := func(text string) bool {
		// A stream has no end, but each write of it has.
		_ = rc.SetWriteDeadline(time.Now().Add(30 * time.Second)) // not every writer has deadlines
		if _, err := w.Write([]byte(text)); err != nil {
			return false
		}
		return len(live.C) > 0 || rc.Flush() == nil
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for ok := send(": waiting for somebody to speak\n\n"); ok; {
		select {
		case <-r.Context().Done():
			return
		case <-beat.C:
			ok = send(": still here\n\n")
		case said, more := <-live.C:
			if !more {
				if err := live.Err(); err != nil {
					send("event: end\ndata: " + err.Error() + "\n\n")
				}
				return
			}
			line, err := json.Marshal(protocolLine(&said))
			ok = err != nil || send("data: "+string(line)+"\n\n") // strings and numbers can be written
		}
	}
}

func protocolLine(s *transcript.Spoken) trackapi.ProtocolLine {
	l := trackapi.ProtocolLine{
		Time: s.Time, Session: s.Session, QueueID: string(s.Message), Direction: s.Direction, Connector: s.Connector, RemoteName: s.RemoteName,
		TranscriptLine: trackapi.TranscriptLine{Seq: s.Line.Seq, At: s.Line.At.Float(), From: s.Line.From, Text: s.Line.Text, Bytes: s.Line.Bytes},
	}
	if s.ClientIP.IsValid() {
		l.ClientIP = s.ClientIP.String()
	}
	if s.RemoteIP.IsValid() {
		l.RemoteIP = s.RemoteIP.String()
	}
	return l
}

// protocolFilter reads the parameters of a request.
func protocolFilter(r *http.Request) (f transcript.Filter, _ *trackapi.Problem) {
	for name, values := range r.URL.Query() {
		if len(values) != 1 {
			return f, trackapi.BadParameter(name, "the parameter is there more than once", "give it once")
		}
		switch v := strings.TrimSpace(values[0]); name {
		case "client_ip":
			if v == "" {
				continue
			}
			ip, err := policy.ParseRange(v)
			if err != nil {
				return f, trackapi.BadParameter(name, "neither an address nor a network", "such as 192.0.2.7 or 192.0.2.0/24")
			}
			f.ClientIP = ip
		case "connector":
			f.Connector = v
		case "direction":
			if v != "" && v != event.Inbound && v != event.Outbound {
				return f, trackapi.BadParameter(name, "unknown word", "inbound or outbound")
			}
			f.Direction = v
		case "remote_host":
			f.RemoteHost = strings.TrimSuffix(v, ".")
			if ip, err := netip.ParseAddr(v); err == nil {
				f.RemoteHost = ip.Unmap().String()
			}
		case "session_id":
			f.Session = v
		default:
			return f, trackapi.BadParameter(name, "unknown parameter", "client_ip, connector, direction, remote_host, session_id")
		}
	}
	return f, nil
}
