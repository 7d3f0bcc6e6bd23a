package cluster

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ironspan/engine/spec"
)

// CertDir is a directory of certificates:
//
//	ca.pem         the authority's certificate; every node and client needs it
//	ca-key.pem     the authority's key: stays where certificates are made
//	node-NAME.pem  certificate and key of a node
//	client.pem     certificate and key of whoever runs VMs
//
// Files with a key have mode 0600, and others are refused. A certificate and its key share a file, so that one
// rename renews both.
type CertDir string

const (
	caFile     = "ca.pem"
	caKeyFile  = "ca-key.pem"
	clientFile = "client.pem"
)

func nodeFile(name string) string { return "node-" + name + ".pem" }

// Init makes an authority, a client's identity and one for each node. It refuses a directory that has an
// authority already.
func (d CertDir) Init(nodes []Subject, valid time.Duration) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	for _, f := range []string{caFile, caKeyFile} {
		if _, err := os.Lstat(d.path(f)); err == nil {
			return fmt.Errorf("cluster: %s is there already: add nodes with `ironspan cert add`, renew with `ironspan cert renew`, or choose another directory", d.path(f))
		}
	}
	a, err := NewAuthority(AuthorityValidity)
	if err != nil {
		return err
	}
	key, err := pemKey(a.key)
	if err != nil {
		return err
	}
	// The key first: an authority without its certificate is not mistaken for a whole one.
	if err := d.write(caKeyFile, key, 0o600); err != nil {
		return err
	}
	if err := d.write(caFile, a.pem, 0o644); err != nil {
		return err
	}
	client, err := a.IssueClient("client", valid)
	if err != nil {
		return err
	}
	if err := d.store(clientFile, client); err != nil {
		return err
	}
	return d.issue(a, nodes, valid)
}

// Add makes identities for further nodes.
func (d CertDir) Add(nodes []Subject, valid time.Duration) error {
	a, err := d.authority()
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if _, err := os.Lstat(d.path(nodeFile(n.Name))); err == nil {
			return fmt.Errorf("cluster: node %s has a certificate already: renew it with `ironspan cert renew`", n.Name)
		}
	}
	return d.issue(a, nodes, valid)
}

func (d CertDir) issue(a *Authority, nodes []Subject, valid time.Duration) error {
	for _, n := range nodes {
		id, err := a.IssueNode(n, valid)
		if err != nil {
			return err
		}
		if err := d.store(nodeFile(n.Name), id); err != nil {
			return err
		}
	}
	return nil
}

// Renew replaces certificates and keys by new ones for the same names: those of the named nodes, or all nodes'
// and the client's if none is named. It returns the files it wrote.
func (d CertDir) Renew(names []string, valid time.Duration) ([]string, error) {
	a, err := d.authority()
	if err != nil {
		return nil, err
	}
	all, err := d.List()
	if err != nil {
		return nil, err
	}
	var wrote []string
	for _, e := range all {
		if e.Role == "" || len(names) > 0 && !slices.Contains(names, e.Name) {
			continue
		}
		sub := Subject{Name: e.Name, Hosts: slices.DeleteFunc(slices.Clone(e.Hosts), func(h string) bool { return h == e.Name })}
		id, err := a.issue(e.Role, sub, valid)
		if err != nil {
			return wrote, err
		}
		if err := d.store(e.File, id); err != nil {
			return wrote, err
		}
		wrote = append(wrote, d.path(e.File))
	}
	for _, n := range names {
		if !slices.ContainsFunc(all, func(e Entry) bool { return e.Role != "" && e.Name == n }) {
			return wrote, fmt.Errorf("cluster: %s has no certificate of %q: see `ironspan cert show`, or make one with `ironspan cert add`", d, n)
		}
	}
	return wrote, nil
}

// Entry is what one file of the directory holds.
type Entry struct {
	File      string    `json:"file"`
	Name      string    `json:"name"`
	Role      Role      `json:"role,omitempty"` // empty: the authority
	Hosts     []string  `json:"hosts,omitempty"`
	NotAfter  time.Time `json:"not_after"`
	Serial    string    `json:"serial"`
	Problem   string    `json:"problem,omitempty"` // why it cannot be used
	Authority bool      `json:"authority,omitempty"`
}

// List returns what the directory holds, the authority first.
func (d CertDir) List() ([]Entry, error) {
	caPEM, err := d.read(caFile, false)
	if err != nil {
		return nil, err
	}
	ca, err := parseCert(caPEM)
	if err != nil {
		return nil, fmt.Errorf("cluster: %s: %w", d.path(caFile), err)
	}
	entries := []Entry{entry(caFile, ca)}
	files, err := filepath.Glob(d.path("*.pem"))
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	slices.Sort(files)
	for _, f := range files {
		f = filepath.Base(f)
		if f != clientFile && !strings.HasPrefix(f, "node-") {
			continue
		}
		id, err := d.load(f)
		if err != nil {
			entries = append(entries, Entry{File: f, Problem: strings.TrimPrefix(err.Error(), "cluster: ")})
			continue
		}
		e := entry(f, id.Certificate())
		e.Role = id.Role()
		entries = append(entries, e)
	}
	return entries, nil
}

func entry(file string, c *x509.Certificate) Entry {
	e := Entry{File: file, Name: c.Subject.CommonName, NotAfter: c.NotAfter, Serial: fmt.Sprintf("%x", c.SerialNumber), Authority: c.IsCA}
	e.Hosts = append(e.Hosts, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		e.Hosts = append(e.Hosts, ip.String())
	}
	switch now := time.Now(); {
	case now.After(c.NotAfter):
		e.Problem = "expired: renew it with `ironspan cert renew`"
	case now.Before(c.NotBefore):
		e.Problem = "not valid yet: is this machine's clock right?"
	}
	return e
}

// Node loads a node's identity. An empty name means the only one there is.
func (d CertDir) Node(name string) (*Identity, error) {
	if name == "" {
		files, err := filepath.Glob(d.path("node-*.pem"))
		if err != nil {
			return nil, fmt.Errorf("cluster: %w", err)
		}
		switch len(files) {
		case 0:
			return nil, fmt.Errorf("cluster: %s has no node's certificate: make one with `ironspan cert init`", d)
		case 1:
			name = strings.TrimSuffix(strings.TrimPrefix(filepath.Base(files[0]), "node-"), ".pem")
		default:
			var names []string
			for _, f := range files {
				names = append(names, strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "node-"), ".pem"))
			}
			slices.Sort(names)
			return nil, fmt.Errorf("cluster: %s has certificates of %s: say with --name which node this is", d, strings.Join(names, ", "))
		}
	}
	if !spec.ValidName(name) {
		return nil, fmt.Errorf("cluster: %q is no name of a node", clean(name, 64))
	}
	id, err := d.load(nodeFile(name))
	if err != nil {
		return nil, err
	}
	if id.Role() != RoleNode {
		return nil, fmt.Errorf("cluster: %s is a %s's certificate", d.path(nodeFile(name)), id.Role())
	}
	return id, nil
}

// Client loads the identity of whoever runs VMs.
func (d CertDir) Client() (*Identity, error) {
	id, err := d.load(clientFile)
	if err != nil {
		return nil, err
	}
	if id.Role() != RoleClient {
		return nil, fmt.Errorf("cluster: %s is a %s's certificate", d.path(clientFile), id.Role())
	}
	return id, nil
}

func (d CertDir) path(file string) string { return filepath.Join(string(d), file) }

// load reads an identity's file and checks it.
func (d CertDir) load(file string) (*Identity, error) {
	caPEM, err := d.read(caFile, false)
	if err != nil {
		return nil, err
	}
	b, err := d.read(file, true)
	if err != nil {
		return nil, err
	}
	var cert, key []byte
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE":
			cert = append(cert, pem.EncodeToMemory(block)...)
		case "PRIVATE KEY":
			key = append(key, pem.EncodeToMemory(block)...)
		}
	}
	id, err := NewIdentity(caPEM, cert, key)
	if err != nil {
		return nil, fmt.Errorf("cluster: %s: %s", d.path(file), strings.TrimPrefix(err.Error(), "cluster: "))
	}
	return id, nil
}

func (d CertDir) store(file string, id *Identity) error {
	return d.write(file, slices.Concat(id.certPEM, id.keyPEM), 0o600)
}

func (d CertDir) authority() (*Authority, error) {
	cert, err := d.read(caFile, false)
	if err != nil {
		return nil, err
	}
	b, err := d.read(caKeyFile, true)
	if err != nil {
		return nil, fmt.Errorf("%w: certificates are made where the authority's key is", err)
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("cluster: %s: %w", d.path(caKeyFile), err)
	}
	return newAuthority(cert, key)
}

// read returns a file of the directory; one with a secret must be its owner's alone.
func (d CertDir) read(file string, secret bool) ([]byte, error) {
	path := d.path(file)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cluster: there is no %s: make certificates with `ironspan cert init --dir %s --nodes NAME,...` and copy ca.pem and this host's file here", path, d)
	}
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if secret && st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("cluster: %s holds a key and can be read by others (mode %04o): chmod 600 %s", path, st.Mode().Perm(), path)
	}
	if st.Size() > 1<<20 {
		return nil, fmt.Errorf("cluster: %s has %d bytes: no certificate", path, st.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return b, nil
}

// write replaces a file of the directory at once.
func (d CertDir) write(file string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(string(d), "."+file+"-*")
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(b)
	for _, next := range []func() error{
		func() error { return f.Chmod(mode) },
		f.Sync,
		f.Close,
		func() error { return os.Rename(f.Name(), d.path(file)) },
	} {
		if err == nil {
			err = next()
		}
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("cluster: %w", err)
	}
	return nil
}
