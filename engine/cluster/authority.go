package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"ironspan/engine/spec"
)

// How long certificates are good for, unless told otherwise.
const (
	AuthorityValidity   = 10 * 365 * 24 * time.Hour
	CertificateValidity = 2 * 365 * 24 * time.Hour

	// skew is how far a host's clock may be behind the one that made a certificate.
	skew = 24 * time.Hour
)

// Subject is whom a node certificate is for.
type Subject struct {
	Name  string   // the node's name
	Hosts []string // further host names and addresses it is reached by
}

// ParseSubject reads NAME or NAME=HOST/HOST..., such as a=10.0.0.1/a.example.
func ParseSubject(s string) (Subject, error) {
	name, hosts, more := strings.Cut(s, "=")
	sub := Subject{Name: name}
	if more {
		sub.Hosts = strings.Split(hosts, "/")
	}
	for _, n := range append([]string{name}, sub.Hosts...) {
		if !spec.ValidName(n) {
			return Subject{}, fmt.Errorf("cluster: %q is no node: write NAME or NAME=HOST/HOST, with letters, digits, dots and dashes", clean(s, 200))
		}
	}
	return sub, nil
}

// String returns the subject as ParseSubject reads it.
func (s Subject) String() string {
	if len(s.Hosts) == 0 {
		return s.Name
	}
	return s.Name + "=" + strings.Join(s.Hosts, "/")
}

// Authority signs the certificates of one cluster.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// NewAuthority makes a cluster's authority.
func NewAuthority(valid time.Duration) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return signAuthority(key, valid)
}

func signAuthority(key crypto.Signer, valid time.Duration) (*Authority, error) {
	now := time.Now()
	serial := newSerial()
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Ironspan"}, CommonName: fmt.Sprintf("cluster %x", serial.Bytes()[:4])},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(valid),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("cluster: authority: %w", err)
	}
	return newAuthority(pemCert(der), key)
}

func newAuthority(certPEM []byte, key crypto.Signer) (*Authority, error) {
	cert, err := parseCert(certPEM)
	if err != nil {
		return nil, fmt.Errorf("cluster: authority: %w", err)
	}
	if pub, ok := key.Public().(*ecdsa.PublicKey); !ok || !pub.Equal(cert.PublicKey) {
		return nil, errors.New("cluster: authority: key and certificate do not belong together")
	}
	if !cert.IsCA {
		return nil, errors.New("cluster: authority: the certificate is none of an authority")
	}
	return &Authority{cert: cert, key: key, pem: certPEM}, nil
}

// Certificate returns the authority's certificate.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// IssueNode makes a node's identity.
func (a *Authority) IssueNode(s Subject, valid time.Duration) (*Identity, error) {
	return a.issue(RoleNode, s, valid)
}

// IssueClient makes the identity of someone who runs VMs.
func (a *Authority) IssueClient(name string, valid time.Duration) (*Identity, error) {
	return a.issue(RoleClient, Subject{Name: name}, valid)
}

func (a *Authority) issue(role Role, s Subject, valid time.Duration) (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	now := time.Now()
	end := now.Add(valid)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	tmpl := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{"Ironspan"}, CommonName: s.Name},
		NotBefore:             now.Add(-skew),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{role.uri()},
	}
	if role == RoleNode {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		for _, n := range append([]string{s.Name}, s.Hosts...) {
			if ip := net.ParseIP(n); ip != nil {
				tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
			} else {
				tmpl.DNSNames = append(tmpl.DNSNames, n)
			}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("cluster: certificate of %s: %w", s.Name, err)
	}
	keyPEM, err := pemKey(key)
	if err != nil {
		return nil, err
	}
	return NewIdentity(a.pem, pemCert(der), keyPEM)
}

func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] = b[0]&0x7f | 0x40 // positive, and always 16 bytes long
	return new(big.Int).SetBytes(b[:])
}

func pemCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func pemKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("cluster: key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no PEM block PRIVATE KEY")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	s, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("not an ECDSA key")
	}
	return s, nil
}
