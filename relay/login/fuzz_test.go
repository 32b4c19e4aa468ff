package login

import (
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"testing"
)

// challenges are what hosts answer to logins that fail, as they are on the wire.
var challenges = []string{
	"eyJzdGF0dXMiOiI0MDAiLCJzY2hlbWVzIjoiQmVhcmVyIiwic2NvcGUiOiJodHRwczovL21haWwuZ29vZ2xlLmNvbS8ifQ==", // Google
	"eyJzdGF0dXMiOiI0MDEiLCJzY2hlbWVzIjoiYmVhcmVyIG1hYyIsInNjb3BlIjoiaHR0cHM6Ly9tYWlsLmdvb2dsZS5jb20vIn0K",
	"eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIiwic2NvcGUiOiJleGFtcGxlX3Njb3BlIn0=", // RFC 7628 section 4.3
	"AQ==", // RFC 7628 section 3.2.3
}

// ntlmChallenge is the CHALLENGE_MESSAGE of MS-NLMP section 4.2.4.3.
const ntlmChallenge = "4e544c4d53535000020000000c000c003800000033828ae20123456789abcdef000000000000000024002400440000000600701700000" +
	"00f53006500720076006500720002000c0044006f006d00610069006e0001000c0053006500720076006500720000000000"

func realChallenges(f *testing.F) (list [][]byte) {
	f.Helper()
	for _, c := range challenges {
		b, err := base64.StdEncoding.DecodeString(c)
		if err != nil {
			f.Fatal(err)
		}
		list = append(list, b)
	}
	b, err := hex.DecodeString(ntlmChallenge)
	if err != nil {
		f.Fatal(err)
	}
	return append(list, b)
}

// cannedAnswer is a token endpoint that gives one answer.
type cannedAnswer struct {
	status int
	kind   string
	body   string
}

func (e cannedAnswer) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: e.status, Status: http.StatusText(e.status), Header: http.Header{"Content-Type": {e.kind}}, Body: io.NopCloser(strings.NewReader(e.body)), Request: req,
	}, nil
}

// FuzzTokenAnswer reads what a token endpoint, or what is in its place, may
// answer: errors are short, of one line, and hold no secret; tokens can be sent.
func FuzzTokenAnswer(f *testing.F) {
	const secret, asJSON = "s3cr3t~of-ours", "application/json; charset=utf-8"
	for _, e := range []cannedAnswer{
		{200, asJSON, `{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.e30.c2ln"}`},
		{200, asJSON, `{"token_type":"Bearer","expires_in":"3599","access_token":"ya29.c.b0"}`},
		{200, asJSON, `{"token_type":"Bearer","expires_in":1,"access_token":"x"}`},
		{200, asJSON, `{"token_type":"MAC","access_token":"a b"}`},
		{200, "application/x-www-form-urlencoded", "access_token=x&token_type=bearer&expires_in=3600"},
		{401, asJSON, `{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '00000003-0000-0000-c000-000000000000'.\r\nTrace ID: 1\r\nCorrelation ID: 2\r\nTimestamp: 2026-01-01 00:00:00Z","error_codes":[7000215],"timestamp":"2026-01-01 00:00:00Z","trace_id":"1","correlation_id":"2","error_uri":"https://login.microsoftonline.com/error?code=7000215"}`},
		{400, asJSON, `{"error":"invalid_scope","error_description":"AADSTS70011: The provided value for the input parameter 'scope' is not valid."}`},
		{401, asJSON, "{\n  \"error\": \"invalid_client\",\n  \"error_description\": \"The OAuth client was not found.\"\n}"},
		{502, "text/html", "<html><head><title>502 Bad Gateway</title></head></html>"},
		{400, asJSON, `{"error":"invalid_request","error_description":"client_secret=` + secret + ` is wrong"}`},
		{429, "text/plain", ""},
	} {
		f.Add(e.status, e.kind, e.body)
	}
	f.Fuzz(func(t *testing.T, status int, kind, body string) {
		if status < 200 || status > 599 || status/100 == 3 {
			return
		}
		tokens, err := NewTokens(TokenOptions{
			Connector: "out", URL: "https://login.example/token", ClientID: "id", Secret: func() (string, error) { return secret, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		tokens.client.Transport = cannedAnswer{status, kind, body}
		token, err := tokens.fetch(t.Context())
		if err != nil {
			text := err.Error()
			if strings.Contains(text, secret) || len(text) > 500 || strings.ContainsAny(text, "\r\n\x00") {
				t.Errorf("error = %q", text)
			}
			return
		}
		if token.AccessToken == "" || len(token.AccessToken) > maxToken || strings.ContainsAny(token.AccessToken, "\r\n\x01 ") {
			t.Errorf("token = %q", token.AccessToken)
		}
	})
}
