package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"ironspan/tools/lab/internal/lab"
)

type statusCmd struct {
	JSON bool `help:"As JSON." name:"json"`
	All  bool `help:"All labs, not only the named one." short:"a"`
}

func (s *statusCmd) Run(c *cli) error {
	names := []string{c.Name}
	if s.All {
		var err error
		if names, err = lab.Names(); err != nil {
			return err
		}
	}
	all := []*lab.Status{}
	for _, n := range names {
		d, err := lab.Open(n)
		if err != nil {
			return err
		}
		st, err := d.Status()
		if errors.Is(err, lab.ErrNotUp) && s.All {
			continue
		}
		if err != nil {
			return err
		}
		all = append(all, st)
	}
	if s.JSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		if s.All {
			return e.Encode(all)
		}
		return e.Encode(all[0])
	}
	for _, st := range all {
		show(st)
	}
	return nil
}

func show(st *lab.Status) {
	if st.State == "stale" {
		fmt.Printf("lab %s: stale (its supervisor died); `lab down` or `lab up` mends it; state in %s\n", st.Name, st.Dir)
		return
	}
	fmt.Printf("lab %s: %s for %s, Linux %s, %s\n", st.Name, st.State, time.Since(st.Since).Round(time.Second), st.Kernel, st.Accel)
	fmt.Printf("share: %s here, %s in every server\n", st.Share, lab.ShareMount)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SERVER\tSTATE\tADDRESS\tBOOT\tRDMA\tPORT\tMTU\tKVM\tPID\tCONSOLE")
	for _, s := range st.Servers {
		fmt.Fprintf(w, "%d\t%s\t%s\t%.1f s\t%s\t%s\t%d\t%v\t%d\t%s\n", s.Server, s.State, s.Addr, s.BootSecs, s.RDMA, s.Port, s.ActiveMTU, s.KVM, s.PID, s.Console)
	}
	w.Flush()
	for _, s := range st.Servers {
		if s.Reason != "" {
			fmt.Printf("server %d: %s\n", s.Server, s.Reason)
		}
	}
}

type downCmd struct {
	All bool `help:"All labs." short:"a"`
}

func (x *downCmd) Run(c *cli) error {
	names := []string{c.Name}
	if x.All {
		var err error
		if names, err = lab.Names(); err != nil {
			return err
		}
	}
	for _, n := range names {
		d, err := lab.Open(n)
		if err != nil {
			return err
		}
		was, err := d.Down()
		if err != nil {
			return err
		}
		if was {
			fmt.Fprintf(os.Stderr, "lab %s is down\n", n)
		} else {
			fmt.Fprintf(os.Stderr, "lab %s was not up\n", n)
		}
	}
	return nil
}

type killCmd struct {
	Server int `arg:"" help:"Server, from 0."`
}

func (k *killCmd) Run(c *cli) error {
	d, err := c.dir()
	if err != nil {
		return err
	}
	return d.Kill(k.Server)
}

type linkCmd struct {
	Server int    `arg:"" help:"Server, from 0."`
	Down   bool   `help:"Cut it."`
	Loss   uint32 `help:"Drop every N-th frame the server sends." placeholder:"N"`
}

func (l *linkCmd) Run(c *cli) error {
	d, err := c.dir()
	if err != nil {
		return err
	}
	return d.SetLink(l.Server, l.Down, l.Loss)
}
