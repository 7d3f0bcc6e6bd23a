package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
)

// The protocols that a node's port speaks, by their ALPN names.
const (
	ALPNMesh    = "ironspan-mesh/1"
	ALPNControl = "h2"
)

// Role is what a certificate entitles its holder to.
type Role string

// The roles. A certificate carries its role as a URI name, ironspan:node or ironspan:client.
const (
	RoleNode   Role = "node"   // to be a member of VMs
	RoleClient Role = "client" // to run VMs on nodes
)

// uri is the name that gives a certificate the role.
func (r Role) uri() *url.URL { return &url.URL{Scheme: "ironspan", Opaque: string(r)} }

// RoleOf returns the role a certificate carries, or an error if it carries none.
func RoleOf(cert *x509.Certificate) (Role, error) {
	for _, u := range cert.URIs {
		if u.Scheme != "ironspan" {
			continue
		}
		switch r := Role(u.Opaque); r {
		case RoleNode, RoleClient:
			return r, nil
		}
	}
	return "", fmt.Errorf("cluster: the certificate of %q was not made by ironspan cert: it carries no role",
		clean(cert.Subject.CommonName, 64))
}

// Identity is a certificate with its key, and the authority that it and its peers are checked against.
type Identity struct {
	name string
	role Role
	cert tls.Certificate
	ca   *x509.Certificate
	pool *x509.CertPool

	certPEM, keyPEM, caPEM []byte
}

// NewIdentity builds an Identity from PEM blocks. The certificate must be signed by the authority and carry a
// role.
func NewIdentity(caPEM, certPEM, keyPEM []byte) (*Identity, error) {
	ca, err := parseCert(caPEM)
	if err != nil {
		return nil, fmt.Errorf("cluster: authority: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("cluster: certificate and key: %w", err)
	}
	leaf := pair.Leaf
	if leaf == nil {
		return nil, errors.New("cluster: certificate without a leaf")
	}
	role, err := RoleOf(leaf)
	if err != nil {
		return nil, err
	}
	id := &Identity{
		name: leaf.Subject.CommonName, role: role, cert: pair, ca: ca, pool: x509.NewCertPool(),
		certPEM: certPEM, keyPEM: keyPEM, caPEM: caPEM,
	}
	id.pool.AddCert(ca)
	opts := x509.VerifyOptions{
		Roots:       id.pool,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		CurrentTime: leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2), // expiry is the peer's to judge
	}
	if _, err := leaf.Verify(opts); err != nil {
		return nil, fmt.Errorf("cluster: the certificate of %q is not by the authority %q: %w",
			id.name, ca.Subject.CommonName, err)
	}
	return id, nil
}

// Name returns the name the identity was issued for.
func (id *Identity) Name() string { return id.name }

// Role returns what the identity entitles to.
func (id *Identity) Role() Role { return id.role }

// Certificate returns the identity's certificate.
func (id *Identity) Certificate() *x509.Certificate { return id.cert.Leaf }

// Covers reports whether the certificate carries name, which may be a host name or an IP address.
func (id *Identity) Covers(name string) bool { return id.cert.Leaf.VerifyHostname(name) == nil }

// identityJSON is how an identity travels from `ironspan run --local` to its node processes.
type identityJSON struct {
	CA   string `json:"ca"`
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// MarshalJSON writes the identity, its private key included.
func (id *Identity) MarshalJSON() ([]byte, error) {
	return json.Marshal(identityJSON{string(id.caPEM), string(id.certPEM), string(id.keyPEM)})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (id *Identity) UnmarshalJSON(b []byte) error {
	var j identityJSON
	if err := strictJSON(b, &j); err != nil {
		return fmt.Errorf("cluster: identity: %w", err)
	}
	n, err := NewIdentity([]byte(j.CA), []byte(j.Cert), []byte(j.Key))
	if err != nil {
		return err
	}
	*id = *n
	return nil
}

// ServerTLS returns the configuration of a node's port.
func (id *Identity) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{id.cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              id.pool,
		NextProtos:             []string{ALPNControl, ALPNMesh},
		SessionTicketsDisabled: true, // a resumed session would skip the certificate
	}
}

// ClientTLS returns the configuration to reach the node of the given certificate name with protocol alpn. The
// node must show a node's certificate.
func (id *Identity) ClientTLS(name, alpn string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Shown even to a node of another authority: it then says what is wrong, where it would miss one else.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &id.cert, nil },
		RootCAs:              id.pool,
		ServerName:           name,
		NextProtos:           []string{alpn},
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.NegotiatedProtocol != alpn {
				return fmt.Errorf("cluster: %s does not speak %s: is it an ironspan node of another version?", name, alpn)
			}
			return RequireRole(&s, RoleNode)
		},
	}
}

// RequireRole returns an error unless the other side of a connection showed a certificate with the role.
func RequireRole(s *tls.ConnectionState, want Role) error {
	if s == nil || len(s.PeerCertificates) == 0 {
		return errors.New("cluster: no certificate was shown")
	}
	have, err := RoleOf(s.PeerCertificates[0])
	if err != nil {
		return err
	}
	if have != want {
		return fmt.Errorf("cluster: %q showed a %s certificate, a %s certificate is needed here",
			clean(s.PeerCertificates[0].Subject.CommonName, 64), have, want)
	}
	return nil
}

func parseCert(b []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM block CERTIFICATE")
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, errors.New("more than one PEM block")
	}
	return x509.ParseCertificate(block.Bytes)
}
