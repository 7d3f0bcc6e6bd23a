package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func subjects(t *testing.T, ss ...string) []Subject {
	t.Helper()
	var all []Subject
	for _, s := range ss {
		sub, err := ParseSubject(s)
		if err != nil {
			t.Fatal(err)
		}
		if sub.String() != s {
			t.Errorf("%q is %q", s, sub)
		}
		all = append(all, sub)
	}
	return all
}

func TestCertDir(t *testing.T) {
	d := CertDir(filepath.Join(t.TempDir(), "certs"))
	if err := d.Init(subjects(t, "a", "b=10.0.0.2/b.example"), CertificateValidity); err != nil {
		t.Fatal(err)
	}
	for f, mode := range map[string]os.FileMode{"": 0o700, caFile: 0o644, caKeyFile: 0o600, "node-a.pem": 0o600, "node-b.pem": 0o600, clientFile: 0o600} {
		st, err := os.Stat(d.path(f))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != mode {
			t.Errorf("%q has mode %v", f, st.Mode())
		}
	}
	b, err := d.Node("b")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"b": true, "10.0.0.2": true, "b.example": true, "a": false, "10.0.0.3": false} {
		if b.Covers(name) != want {
			t.Errorf("b covers %s: %t", name, !want)
		}
	}
	c := b.Certificate()
	if key, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() || c.IsCA ||
		!slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		t.Errorf("%+v", c)
	}
	client, err := d.Client()
	if err != nil {
		t.Fatal(err)
	}
	if client.Role() != RoleClient || slices.Contains(client.Certificate().ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		t.Errorf("client: %+v", client.Certificate())
	}

	if err := d.Init(nil, time.Hour); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("a second init: %v", err)
	}
	if err := d.Add(subjects(t, "a"), time.Hour); err == nil {
		t.Error("a second a")
	}
	if err := d.Add(subjects(t, "c"), time.Hour); err != nil {
		t.Error(err)
	}
	if _, err := d.Node(""); err == nil || !strings.Contains(err.Error(), "a, b, c") {
		t.Errorf("which of three: %v", err)
	}
	if _, err := d.Node("../client"); err == nil {
		t.Error("a name with a path")
	}

	wrote, err := d.Renew([]string{"b"}, time.Hour)
	if err != nil || len(wrote) != 1 {
		t.Fatal(wrote, err)
	}
	b2, err := d.Node("b")
	if err != nil {
		t.Fatal(err)
	}
	if !b2.Covers("10.0.0.2") || !b2.Covers("b") || b2.Certificate().SerialNumber.Cmp(c.SerialNumber) == 0 {
		t.Error("renewal loses names, or renews nothing")
	}
	if wrote, err = d.Renew(nil, time.Hour); err != nil || len(wrote) != 4 {
		t.Error(wrote, err)
	}
	if _, err := d.Renew([]string{"z"}, time.Hour); err == nil {
		t.Error("renewed z")
	}

	es, err := d.List()
	if err != nil || len(es) != 5 || !es[0].Authority || es[1].File != "client.pem" || es[1].Role != RoleClient {
		t.Errorf("%+v %v", es, err)
	}
	os.Chmod(d.path("node-a.pem"), 0o644)
	if _, err := d.Node("a"); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("an open key: %v", err)
	}
	if es, _ = d.List(); es[2].Problem == "" {
		t.Error("an open key is not shown as a problem")
	}
}

func TestCertDirOfOneNode(t *testing.T) {
	d := CertDir(t.TempDir())
	if _, err := d.Node(""); err == nil || !strings.Contains(err.Error(), "cert init") {
		t.Error(err)
	}
	if err := d.Init(subjects(t, "only"), time.Hour); err != nil {
		t.Fatal(err)
	}
	if id, err := d.Node(""); err != nil || id.Name() != "only" {
		t.Error(err)
	}
}

func TestForeignCertificate(t *testing.T) {
	a, b := authority(t), authority(t)
	id := issue(t, a, RoleNode, "n")
	if _, err := NewIdentity(b.pem, id.certPEM, id.keyPEM); err == nil {
		t.Error("a certificate of another authority")
	}
	other := issue(t, a, RoleNode, "n")
	if _, err := NewIdentity(a.pem, id.certPEM, other.keyPEM); err == nil {
		t.Error("a key of another certificate")
	}
}

func TestIdentityJSON(t *testing.T) {
	id := issue(t, authority(t), RoleNode, "n")
	b, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	got := new(Identity)
	if err := json.Unmarshal(b, got); err != nil {
		t.Fatal(err)
	}
	if got.Name() != "n" || got.Role() != RoleNode || !got.Covers("n") {
		t.Errorf("%+v", got)
	}
	if len(b) > 32<<10 {
		t.Errorf("%d bytes do not fit a pipe", len(b))
	}
}

func TestSubjects(t *testing.T) {
	for _, s := range []string{"", "=a", "a=", "a b", "a=b//c", "-x", "a/b"} {
		if sub, err := ParseSubject(s); err == nil {
			t.Errorf("%q is %+v", s, sub)
		}
	}
}
