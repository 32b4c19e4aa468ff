//go:build e2e

package e2e

import (
	"compress/gzip"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/relaytest"
	"waybill/relay/tlsrpt"
)

const aloneVariable = "WAYBILL_E2E_ALONE"

// alone runs the test once more, in a network that has nothing but itself and
// these addresses: an Internet of its own, where the daemon needs no setting that
// it would not have on the other one, while other tests go on. It reports whether
// this is there.
func alone(t *testing.T, addresses ...string) bool {
	t.Helper()
	if os.Getenv(aloneVariable) == t.Name() {
		run(t, "ip", "link", "set", "lo", "up")
		for _, a := range addresses {
			run(t, "ip", "addr", "add", a+"/32", "dev", "lo")
		}
		return true
	}
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--net"}
	if os.Geteuid() != 0 {
		args = append(args, "--map-current-user", "--keep-caps")
	}
	args = append(args, self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1", "-test.timeout=10m")
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(os.Environ(), aloneVariable+"="+t.Name())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in a network of its own: %v\n%s", err, out)
	}
	return false
}

// pemFiles writes a certificate, its key and its authority for other programs.
func pemFiles(t testing.TB, dir string, ca *x509.Certificate, cert tls.Certificate) (certFile, keyFile, caFile string) {
	t.Helper()
	certFile, keyFile, caFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var chain strings.Builder
	for _, der := range cert.Certificate {
		chain.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	write(t, certFile, chain.String())
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	write(t, caFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})))
	return certFile, keyFile, caFile
}

// collector takes reports on TLS by HTTPS (RFC 8460 section 5.3), behind nginx.
type collector struct {
	mu      sync.Mutex
	reports []tlsrpt.Report
	faults  []string
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var rep tlsrpt.Report
	z, err := gzip.NewReader(r.Body)
	if err == nil {
		err = json.NewDecoder(io.LimitReader(z, 1<<20)).Decode(&rep)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if kind := r.Header.Get("Content-Type"); err != nil || r.Method != http.MethodPost || kind != "application/tlsrpt+gzip" {
		c.faults = append(c.faults, fmt.Sprintf("%s of %s: %v", r.Method, kind, err))
	}
	c.reports = append(c.reports, rep)
	w.WriteHeader(http.StatusCreated)
}

const mtastsNginx = `daemon off;
master_process off;
user root;
pid %[1]s/nginx.pid;
error_log stderr warn;
events {}
http {
  access_log off;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
  ssl_certificate %[2]s;
  ssl_certificate_key %[3]s;
  default_type text/plain;
  server { listen %[4]s:443 ssl default_server; return 404; }
  server { listen %[4]s:443 ssl; server_name collector.example; location /v1/reports { proxy_pass %[5]s; } }
`

// TestMTASTS sends by MX to domains whose policies a real web server has, at the
// ports of the standards, and looks at the reports that their collector gets by
// HTTPS the next day.
func TestMTASTS(t *testing.T) {
	const web, good, strange, bare = "5.6.7.8", "5.6.7.1", "5.6.7.2", "5.6.7.3"
	if !alone(t, web, good, strange, bare) {
		return
	}
	domains := []struct {
		name        string // with .example behind it
		mode        string // of its policy; empty: it has none
		listed      string // in its policy; empty: mx.NAME.example
		at          string // where its MX is
		disposition string
		verify      string
		policy      string
		failure     string
		report      string
	}{
		{"enforce", "enforce", "", good, "relayed", "mta_sts", "mta_sts", "", "sts 1/0"},
		{"wildcard", "enforce", "*.wildcard.example", good, "relayed", "mta_sts", "mta_sts", "", "sts 1/0"},
		{"strange", "enforce", "", strange, "deferred", "none", "mta_sts", "unknown_authority", "sts 0/1 certificate-not-trusted"},
		{"bare", "enforce", "", bare, "deferred", "none", "mta_sts", "not_offered", "sts 0/1 starttls-not-supported"},
		{"elsewhere", "enforce", "mx.other.example", good, "deferred", "none", "mta_sts", "mx_mismatch", "sts 0/1 validation-failure"},
		{"testing", "testing", "", strange, "relayed", "unverified", "mta_sts", "unknown_authority", "sts 0/1 certificate-not-trusted"},
		{"testing-bare", "testing", "", bare, "relayed", "none", "mta_sts", "not_offered", "sts 0/1 starttls-not-supported"},
		{"none", "", "", strange, "relayed", "unverified", "opportunistic", "", "no-policy-found 1/0"},
		{"broken", "nonsense", "", strange, "relayed", "unverified", "opportunistic", "", "no-policy-found 1/0; sts 0/1 sts-policy-invalid"},
	}
	names, hosts := []string{"collector.example"}, []string{"mx.example"}
	zones, served := map[string]string{"collector.example": "@ A " + web + "\n"}, []string(nil)
	for _, d := range domains {
		domain := d.name + ".example"
		names, hosts, served = append(names, "mta-sts."+domain), append(hosts, "mx."+domain), append(served, domain)
		zones[domain] = fmt.Sprintf("@ MX 10 mx\nmx A %s\n_smtp._tls TXT \"v=TLSRPTv1; rua=https://collector.example/v1/reports\"\n", d.at)
		if d.mode != "" {
			zones[domain] += "mta-sts A " + web + "\n_mta-sts TXT \"v=STSv1; id=1;\"\n"
		}
	}
	ca, cert := authority(t, append(names, hosts...)...)
	_, stranger := authority(t, hosts...)
	dir := shared(t)
	certFile, keyFile, caFile := pemFiles(t, dir, ca, cert)
	t.Setenv("SSL_CERT_FILE", caFile) // the authorities of the system that the daemon is on
	t.Setenv("SSL_CERT_DIR", dir+"/none")

	for at, opts := range map[string][]relaytest.Option{
		good: {relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}})}, strange: {relaytest.WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{stranger}})}, bare: nil,
	} {
		h, err := relaytest.StartSmartHost(at+":25", opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.Close() })
	}
	var got collector
	behind := httptest.NewServer(&got)
	t.Cleanup(behind.Close)
	conf := fmt.Sprintf(mtastsNginx, dir, certFile, keyFile, web, behind.URL)
	for _, d := range domains {
		if d.mode == "" {
			continue
		}
		listed := d.listed
		if listed == "" {
			listed = "mx." + d.name + ".example"
		}
		conf += fmt.Sprintf("  server { listen %s:443 ssl; server_name mta-sts.%s.example; location = /.well-known/mta-sts.txt { return 200 \"version: STSv1\\r\\nmode: %s\\r\\nmx: %s\\r\\nmax_age: 86400\\r\\n\"; } }\n", web, d.name, d.mode, listed)
	}
	write(t, filepath.Join(dir, "nginx.conf"), conf+"}\n")
	background(t, "/usr/sbin/nginx", "-c", filepath.Join(dir, "nginx.conf"), "-e", "stderr")
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	eventually(t, time.Minute, "the web server", func() error {
		c, err := tls.Dial("tcp", web+":443", &tls.Config{RootCAs: pool, ServerName: "collector.example"})
		if err == nil {
			err = c.Close()
		}
		return err
	})
	server := serveZones(t, nil, zones).validate(append(served, "collector.example"))

	in := port(t)
	d := start(t, fmt.Sprintf(`hostname: relay.test
data_dir: DIR/data
http: {listen: "127.0.0.1:HTTPPORT"}
log: {file: DIR/waybill.log}
queue: {disk_free_min: 16MiB}
dns: {servers: [%q]}
tls_reports: {enabled: true, from: tls-reports@relay.test, organization: Relay, delay: 1s}
receive_connectors:
  - {name: in, usage: internal, listen: ["127.0.0.1:%d"]}
send_connectors:
  - {name: out, address_spaces: [{space: "*"}], tls: {level: mta_sts}, retry: {schedule: [30m]}}
`, server, in))
	s := dial(t, in)
	for _, test := range domains {
		t.Run(test.name, func(t *testing.T) {
			s.t = t
			s.send("a@source.test", "b@"+test.name+".example", hello)
			d.attemptIs(t, "b@"+test.name+".example", security{test.disposition, test.verify, test.policy, test.failure})
		})
	}
	nextDay(t, d)
	want := map[string]string{}
	for _, d := range domains {
		want[d.name+".example"] = d.report
	}
	eventually(t, 3*time.Minute, "the reports", func() error {
		got.mu.Lock()
		defer got.mu.Unlock()
		if len(got.faults) > 0 {
			t.Fatalf("reports that are none: %q", got.faults)
		}
		lines := map[string][]string{}
		for _, rep := range got.reports {
			if rep.Organization != "Relay" || rep.Contact != "tls-reports@relay.test" {
				t.Fatalf("report = %+v", rep)
			}
			for _, p := range rep.Policies {
				line := fmt.Sprintf("%s %d/%d", p.Policy.Type, p.Summary.Successful, p.Summary.Failed)
				for _, f := range p.Failures {
					line += " " + f.Type
				}
				lines[p.Policy.Domain] = append(lines[p.Policy.Domain], line)
			}
		}
		if len(lines) < len(want) {
			return fmt.Errorf("%d of %d reports: %v", len(lines), len(want), lines)
		}
		for domain, line := range want {
			if slices.Sort(lines[domain]); strings.Join(lines[domain], "; ") != line {
				t.Errorf("report to %s: %q, want %q", domain, lines[domain], line)
			}
		}
		return nil
	})
}

// nextDay lets the day of what is counted for reports on TLS end, by another name
// of its file.
func nextDay(t *testing.T, d *daemon) {
	t.Helper()
	d.stop()
	dir := filepath.Join(d.dir, "data", "tls-reports")
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v; want the day's", files, err)
	}
	name := filepath.Join(dir, files[0].Name())
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	today := strings.TrimSuffix(files[0].Name(), ".json")
	yesterday := time.Now().UTC().AddDate(0, 0, -1).Format(time.DateOnly)
	write(t, filepath.Join(dir, yesterday+".json"), strings.Replace(string(text), today, yesterday, 1))
	d.boot()
	d.ready()
}
