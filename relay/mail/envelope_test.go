package mail

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseMail(t *testing.T) {
	from := Address{Local: "a", Domain: "b.example"}
	for _, test := range []struct {
		name string
		in   string
		want Envelope
		err  error
	}{
		{"plain", "FROM:<a@b.example>", Envelope{Sender: from}, nil},
		{"null sender", "FROM:<>", Envelope{}, nil},
		{"lower case", "from:<a@b.example> size=10 body=8bitmime", Envelope{Sender: from, Size: 10, Body: Body8BitMIME}, nil},
		{"space before the path", " FROM: <a@b.example>", Envelope{Sender: from}, nil},
		{"spaces between parameters", "FROM:<a@b.example>  SIZE=10   SMTPUTF8 ", Envelope{Sender: from, Size: 10, UTF8: true}, nil},
		{
			"all parameters", "FROM:<a@b.example> SIZE=10 BODY=BINARYMIME SMTPUTF8 RET=hdrs ENVID=x+2By AUTH=u+40c.example",
			Envelope{Sender: from, Size: 10, Body: BodyBinaryMIME, UTF8: true, Ret: "HDRS", EnvID: "x+y", Auth: "u@c.example"},
			nil,
		},
		{"unknown submitter", "FROM:<a@b.example> AUTH=<>", Envelope{Sender: from, Auth: "<>"}, nil},
		{"UTF-8", "FROM:<ä@b.example> SMTPUTF8", Envelope{Sender: Address{Local: "ä", Domain: "b.example"}, UTF8: true}, nil},
		{"UTF-8 without the parameter", "FROM:<ä@b.example>", Envelope{}, ErrAddressUTF8},
		{"largest size", "FROM:<> SIZE=9223372036854775807", Envelope{Size: 1<<63 - 1}, nil},
		{"no path", "FROM:", Envelope{}, ErrAddressSyntax},
		{"no keyword", "<a@b.example>", Envelope{}, ErrAddressSyntax},
		{"other keyword", "TO:<a@b.example>", Envelope{}, ErrAddressSyntax},
		{"no space before the parameter", "FROM:<a@b.example>SIZE=10", Envelope{}, ErrAddressSyntax},
		{"sender without domain", "FROM:<postmaster>", Envelope{}, ErrAddressSyntax},
		{"unknown parameter", "FROM:<> FOO=1", Envelope{}, ErrUnknownParameter},
		{"path as a parameter", "FROM:<> <a@b.example>", Envelope{}, ErrUnknownParameter},
		{"twice", "FROM:<> SIZE=1 size=2", Envelope{}, ErrParameter},
		{"no value", "FROM:<> SIZE=", Envelope{}, ErrParameter},
		{"no equals sign", "FROM:<> SIZE", Envelope{}, ErrParameter},
		{"negative size", "FROM:<> SIZE=-1", Envelope{}, ErrParameter},
		{"negative nothing", "FROM:<> SIZE=-0", Envelope{}, ErrParameter},
		{"signed size", "FROM:<> SIZE=+1", Envelope{}, ErrParameter},
		{"size beyond 64 bits", "FROM:<> SIZE=99999999999999999999", Envelope{}, ErrParameter},
		{"hexadecimal size", "FROM:<> SIZE=0x10", Envelope{}, ErrParameter},
		{"body", "FROM:<> BODY=9BIT", Envelope{}, ErrParameter},
		{"SMTPUTF8 with a value", "FROM:<> SMTPUTF8=1", Envelope{}, ErrParameter},
		{"ret", "FROM:<> RET=ALL", Envelope{}, ErrParameter},
		{"long envid", "FROM:<> ENVID=" + strings.Repeat("x", 101), Envelope{}, ErrParameter},
		{"line end in the envid", "FROM:<> ENVID=x+0D+0A", Envelope{}, ErrParameter},
		{"envid that is not UTF-8", "FROM:<> ENVID=x+FF", Envelope{}, ErrParameter},
		{"lower-case hexadecimal", "FROM:<> ENVID=x+2b", Envelope{}, ErrParameter},
		{"half hexadecimal", "FROM:<> ENVID=x+2", Envelope{}, ErrParameter},
		{"tab", "FROM:<>\tSIZE=1", Envelope{}, ErrAddressSyntax},
		{"tab between parameters", "FROM:<> SIZE=1\tRET=FULL", Envelope{}, ErrParameter},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseMail(test.in)
			if !errors.Is(err, test.err) {
				t.Fatalf("ParseMail(%q) = %v, want %v", test.in, err, test.err)
			}
			if err == nil && !reflect.DeepEqual(got, test.want) {
				t.Errorf("ParseMail(%q) = %+v, want %+v", test.in, got, test.want)
			}
		})
	}
}

func TestParseRcpt(t *testing.T) {
	to := Address{Local: "a", Domain: "b.example"}
	for _, test := range []struct {
		name string
		in   string
		utf8 bool
		want Recipient
		err  error
	}{
		{"plain", "TO:<a@b.example>", false, Recipient{Address: to}, nil},
		{"postmaster", "to:<Postmaster>", false, Recipient{Address: Address{Local: "Postmaster"}}, nil},
		{
			"parameters", "TO:<a@b.example> NOTIFY=success,DELAY ORCPT=rfc822;x+2By@c.example", false,
			Recipient{Address: to, Notify: NotifySuccess | NotifyDelay, ORcpt: "rfc822;x+y@c.example"},
			nil,
		},
		{"never", "TO:<a@b.example> NOTIFY=NEVER", false, Recipient{Address: to, Notify: NotifyNever}, nil},
		{"UTF-8", "TO:<ä@b.example>", true, Recipient{Address: Address{Local: "ä", Domain: "b.example"}}, nil},
		{"UTF-8 without the parameter", "TO:<ä@b.example>", false, Recipient{}, ErrAddressUTF8},
		{"null", "TO:<>", false, Recipient{}, ErrAddressSyntax},
		{"never and more", "TO:<a@b.example> NOTIFY=NEVER,DELAY", false, Recipient{}, ErrParameter},
		{"twice the same", "TO:<a@b.example> NOTIFY=DELAY,DELAY", false, Recipient{}, ErrParameter},
		{"empty word", "TO:<a@b.example> NOTIFY=DELAY,", false, Recipient{}, ErrParameter},
		{"no address type", "TO:<a@b.example> ORCPT=x", false, Recipient{}, ErrParameter},
		{"empty address type", "TO:<a@b.example> ORCPT=;x", false, Recipient{}, ErrParameter},
		{"odd address type", "TO:<a@b.example> ORCPT=<x>;x", false, Recipient{}, ErrParameter},
		{"long ORCPT", "TO:<a@b.example> ORCPT=rfc822;" + strings.Repeat("x", 500), false, Recipient{}, ErrParameter},
		{"line end in ORCPT", "TO:<a@b.example> ORCPT=rfc822;x+0AX", false, Recipient{}, ErrParameter},
		{"parameter of MAIL", "TO:<a@b.example> SIZE=1", false, Recipient{}, ErrUnknownParameter},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseRcpt(test.in, test.utf8)
			if !errors.Is(err, test.err) {
				t.Fatalf("ParseRcpt(%q) = %v, want %v", test.in, err, test.err)
			}
			if err == nil && got != test.want {
				t.Errorf("ParseRcpt(%q) = %+v, want %+v", test.in, got, test.want)
			}
		})
	}
}

func TestXText(t *testing.T) {
	for _, s := range []string{"", "plain", "a+b=c", "a b", "grüße", "~!"} {
		enc := EncodeXText(s)
		got, err := DecodeXText(enc)
		if err != nil || got != s || strings.ContainsAny(enc, " =\r\n") {
			t.Errorf("xtext of %q is %q, decodes to %q, %v", s, enc, got, err)
		}
	}
	for _, s := range []string{"+", "+4", "+4g", "+0D", "a=b", "a b", "+FF", "\xff"} {
		if got, err := DecodeXText(s); err == nil {
			t.Errorf("DecodeXText(%q) = %q, want an error", s, got)
		}
	}
}

func TestNotify(t *testing.T) {
	for _, test := range []struct {
		notify         Notify
		text           string
		success, delay bool
		failure        bool
	}{
		{0, "", false, true, true},
		{NotifyNever, "NEVER", false, false, false},
		{NotifySuccess | NotifyFailure, "SUCCESS,FAILURE", true, false, true},
		{NotifyDelay, "DELAY", false, true, false},
	} {
		n := test.notify
		if n.String() != test.text || n.Wants(NotifySuccess) != test.success || n.Wants(NotifyDelay) != test.delay || n.Wants(NotifyFailure) != test.failure {
			t.Errorf("Notify %q wants success %t, delay %t, failure %t", n, n.Wants(NotifySuccess), n.Wants(NotifyDelay), n.Wants(NotifyFailure))
		}
	}
}

func TestBodyString(t *testing.T) {
	for b, want := range map[Body]string{Body7Bit: "7BIT", Body8BitMIME: "8BITMIME", BodyBinaryMIME: "BINARYMIME", 9: "body(9)"} {
		if b.String() != want {
			t.Errorf("Body(%d).String() = %q, want %q", uint8(b), b, want)
		}
	}
}

// A parsed envelope survives storage: what cannot be written as JSON and read
// back unchanged must not be accepted.
func FuzzParseMail(f *testing.F) {
	f.Add("FROM:<a@b.example> SIZE=10 BODY=BINARYMIME SMTPUTF8 RET=HDRS ENVID=x+2By AUTH=<>", "TO:<c@d.example> NOTIFY=DELAY ORCPT=rfc822;x+40y")
	f.Add("FROM:<>", "TO:<postmaster> ORCPT=utf-8;ä")
	f.Add("FROM:<> SMTPUTF8", `TO:<ä@b.example> ORCPT=UTF-8;j\x{F6}rg+2Bß\x{1F600}@c.example`)
	f.Add("FROM:<> REQUIRETLS MT-PRIORITY=-9 HOLDUNTIL=2030-01-02T03:04:05+01:00", "TO:<a@b.example>")
	f.Add("FROM:<> BY=-60;NT", "TO:<a@b.example>")
	f.Add("FROM:<> HOLDFOR=60 MT-PRIORITY=0", "TO: <a@b.example>")
	f.Add("FROM:<a@b.example> ENVID=+9B", "TO:<\"a b\"@c.example>")
	f.Fuzz(func(t *testing.T, from, to string) {
		e, err := ParseMail(from)
		if err != nil {
			return
		}
		r, err := ParseRcpt(to, e.UTF8)
		if err != nil {
			return
		}
		e.Recipients = []Recipient{r}
		data, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var again Envelope
		if err := json.Unmarshal(data, &again); err != nil || !reflect.DeepEqual(e, again) {
			t.Errorf("%s decodes to %+v, %v, want %+v", data, again, err, e)
		}
		if e.EnvID != "" {
			if got, err := DecodeXText(EncodeXText(e.EnvID)); err != nil || got != e.EnvID {
				t.Errorf("ENVID %q is written as %q", e.EnvID, EncodeXText(e.EnvID))
			}
		}
	})
}

func TestParseMailExtensions(t *testing.T) {
	for _, test := range []struct {
		args string
		want Envelope
		prio Priority
	}{
		{"FROM:<> REQUIRETLS", Envelope{RequireTLS: true}, PriorityNormal},
		{"FROM:<> MT-PRIORITY=9", Envelope{Priority: 9}, PriorityHigh},
		{"FROM:<> mt-priority=-4", Envelope{Priority: -4}, PriorityLow},
		{"FROM:<> MT-PRIORITY=0", Envelope{}, PriorityNormal},
		{"FROM:<> HOLDUNTIL=2030-01-02T03:04:05Z", Envelope{Release: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}, PriorityNormal},
	} {
		got, err := ParseMail(test.args)
		if err != nil || !reflect.DeepEqual(got, test.want) || got.Queueing() != test.prio {
			t.Errorf("ParseMail(%q) = %+v, %v, want %+v", test.args, got, err, test.want)
		}
	}
	if e, err := ParseMail("FROM:<> HOLDFOR=60"); err != nil || time.Until(e.Release) > time.Minute || time.Until(e.Release) < 50*time.Second {
		t.Errorf("HOLDFOR: %+v, %v", e, err)
	}
	for _, args := range []string{
		"REQUIRETLS=1", "MT-PRIORITY=10", "MT-PRIORITY=", "MT-PRIORITY=1.5", "MT-PRIORITY=+3", "MT-PRIORITY=009", "HOLDFOR=-1", "HOLDFOR=1234567890",
		"BY=0;R", "BY=-1;R", "BY=1", "BY=1;", "BY=1;X", "BY=1;NN", "BY=1;NTT", "BY=;N", "BY=--1;N", "BY=1234567890;N", "BY=1;N BY=1;N",
		"HOLDFOR=5 HOLDUNTIL=2030-01-02T03:04:05Z", "HOLDUNTIL=2030-01-02", "REQUIRETLS REQUIRETLS",
	} {
		if _, err := ParseMail("FROM:<> " + args); !errors.Is(err, ErrParameter) {
			t.Errorf("ParseMail(%q): %v, want %v", args, err, ErrParameter)
		}
	}
}

func TestDeliverBy(t *testing.T) {
	for _, test := range []struct {
		value string
		after time.Duration
		want  string // of what is told to the next host after that time
		ok    bool
	}{
		{"120;R", 0, "120;R", true},
		{"+120;rt", 30 * time.Second, "90;RT", true},
		{"1;R", 2 * time.Second, "-1;R", false},
		{"1;R", 500 * time.Millisecond, "0;R", false},
		{"60;N", time.Minute, "0;N", true},
		{"-5;NT", time.Second, "-6;NT", true},
		{"999999999;n", 0, "999999999;N", true},
		{"-999999999;N", time.Hour, "-999999999;N", true},
	} {
		t.Run(test.value, func(t *testing.T) {
			now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
			b, ok := parseDeliverBy(test.value, now)
			if !ok || b.IsZero() {
				t.Fatalf("parseDeliverBy(%q) = %+v, %t", test.value, b, ok)
			}
			if got, ok := b.Value(now.Add(test.after)); got != test.want || ok != test.ok {
				t.Errorf("Value() = %q, %t, want %q, %t", got, ok, test.want, test.ok)
			}
		})
	}
	if e, err := ParseMail("FROM:<> BY=60;NT"); err != nil || e.DeliverBy.Return || !e.DeliverBy.Trace || time.Until(e.DeliverBy.Deadline) > time.Minute {
		t.Errorf("BY: %+v, %v", e, err)
	}
}
