package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"ironspan/engine/cluster"
)

// defaultCertDir is where certificates are looked for when nothing is said.
func defaultCertDir() string {
	d, err := os.UserConfigDir()
	if err != nil {
		return "ironspan-certs"
	}
	return filepath.Join(d, "ironspan")
}

type certCmd struct {
	Init  certInitCmd  `cmd:"" help:"Make an authority, a client's certificate and one for each node."`
	Add   certAddCmd   `cmd:"" help:"Make certificates for further nodes."`
	Show  certShowCmd  `cmd:"" help:"Show the certificates of a directory."`
	Renew certRenewCmd `cmd:"" help:"Replace certificates and keys by new ones."`
}

type certDir struct {
	Dir string `short:"d" default:"${certs}" placeholder:"DIR" help:"Directory of the certificates (default ${certs})."`
}

type certNodes struct {
	Nodes []string      `required:"" placeholder:"NAME,..." help:"The nodes, as NAME or NAME=HOST/HOST: the name is what a spec's addr (or name) says, hosts are further names and addresses the node is reached by."`
	Valid time.Duration `default:"17520h" help:"How long the certificates are good for (default two years)."`
}

func (n certNodes) subjects() ([]cluster.Subject, error) {
	var all []cluster.Subject
	seen := map[string]bool{}
	for _, s := range n.Nodes {
		sub, err := cluster.ParseSubject(s)
		if err != nil {
			return nil, &exitError{exitUsage, err}
		}
		if seen[sub.Name] {
			return nil, fail(exitUsage, "node %s is named twice", sub.Name)
		}
		seen[sub.Name] = true
		all = append(all, sub)
	}
	return all, checkValid(n.Valid)
}

func checkValid(d time.Duration) error {
	if d < time.Minute || d > cluster.AuthorityValidity {
		return fail(exitUsage, "--valid is %v: a minute to %v are allowed", d, cluster.AuthorityValidity)
	}
	return nil
}

type certInitCmd struct {
	certDir
	certNodes
}

func (certInitCmd) Help() string {
	return `Writes to the directory:

  ca.pem          the authority's certificate: copy it to every node and client
  ca-key.pem      the authority's key: keep it here, it makes further certificates
  node-NAME.pem   certificate and key of a node: copy it to that node alone
  client.pem      certificate and key for ironspan run: copy it to whoever runs VMs

Example:

  ironspan cert init --dir certs --nodes server-a,server-b=10.0.0.2
  scp certs/ca.pem certs/node-server-a.pem server-a:.config/ironspan/`
}

func (c *certInitCmd) Run(con *console) error {
	subs, err := c.subjects()
	if err != nil {
		return err
	}
	dir := cluster.CertDir(c.Dir)
	if err := dir.Init(subs, c.Valid); err != nil {
		return err
	}
	fmt.Fprintf(con.out, "made an authority and a client's certificate in %s\n", c.Dir)
	c.tell(con, subs)
	return nil
}

func (d certDir) tell(con *console, subs []cluster.Subject) {
	for _, s := range subs {
		fmt.Fprintf(con.out, "node %s: copy %s and %s to its --cert-dir\n", s.Name,
			filepath.Join(d.Dir, "ca.pem"), filepath.Join(d.Dir, "node-"+s.Name+".pem"))
	}
}

type certAddCmd struct {
	certDir
	certNodes
}

func (c *certAddCmd) Run(con *console) error {
	subs, err := c.subjects()
	if err != nil {
		return err
	}
	if err := cluster.CertDir(c.Dir).Add(subs, c.Valid); err != nil {
		return err
	}
	c.tell(con, subs)
	return nil
}

type certShowCmd struct {
	certDir
	JSON bool `help:"Write JSON."`
}

func (certShowCmd) Help() string {
	return "Exits with 1 if a certificate cannot be used: it has expired, or its file can be read by others."
}

func (c *certShowCmd) Run(con *console) error {
	entries, err := cluster.CertDir(c.Dir).List()
	if err != nil {
		return err
	}
	bad := 0
	for _, e := range entries {
		if e.Problem != "" {
			bad++
		}
	}
	if c.JSON {
		enc := json.NewEncoder(con.out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(entries); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "FILE\tROLE\tNAME\tHOSTS\tUNTIL\tSTATE")
		for _, e := range entries {
			role, state := string(e.Role), "ok"
			if e.Authority {
				role = "authority"
			}
			if e.Problem != "" {
				state = e.Problem
			}
			until := "-"
			if !e.NotAfter.IsZero() {
				until = e.NotAfter.UTC().Format(time.DateOnly)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.File, dash(role), dash(e.Name), dash(strings.Join(e.Hosts, " ")), until, state)
		}
		w.Flush()
	}
	if bad > 0 {
		return fail(exitFailed, "%d of %d certificates cannot be used", bad, len(entries))
	}
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

type certRenewCmd struct {
	certDir
	Names []string      `arg:"" optional:"" help:"Nodes whose certificates to renew, or client (default: all)."`
	Valid time.Duration `default:"17520h" help:"How long the new certificates are good for (default two years)."`
}

func (certRenewCmd) Help() string {
	return "The names stay, the keys are new. Copy the files to their nodes and restart the daemons; old and new certificates work side by side until the old ones expire."
}

func (c *certRenewCmd) Run(con *console) error {
	if err := checkValid(c.Valid); err != nil {
		return err
	}
	wrote, err := cluster.CertDir(c.Dir).Renew(c.Names, c.Valid)
	for _, f := range wrote {
		fmt.Fprintln(con.out, "renewed", f)
	}
	return err
}
