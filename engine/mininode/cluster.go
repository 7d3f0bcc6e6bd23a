package mininode

import (
	"errors"
	"time"
)

// Cluster is all nodes of a VM, in one process.
type Cluster []*Node

// NewCluster makes a node of each configuration, connects them and lets them serve. Their guests wait for Run.
func NewCluster(cs []Config) (ns Cluster, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, ns.Close())
			ns = nil
		}
	}()
	for i := range cs {
		n, err := New(cs[i])
		if err != nil {
			return ns, err
		}
		ns = append(ns, n)
	}
	for _, n := range ns {
		for _, peer := range ns {
			if n == peer {
				continue
			}
			offers, err := peer.Offers(n.Config.Self)
			if err != nil {
				return ns, err
			}
			if err := n.Connect(peer.Config.Self, offers); err != nil {
				return ns, err
			}
		}
	}
	ns.Start(time.Now())
	return ns, nil
}

// Start starts all nodes.
func (ns Cluster) Start(zero time.Time) {
	for _, n := range ns {
		n.Start(zero)
	}
}

// Stop stops all nodes.
func (ns Cluster) Stop() error {
	for _, n := range ns {
		n.StopVM() // so that none waits for another's
	}
	var errs []error
	for _, n := range ns {
		errs = append(errs, n.Stop())
	}
	return errors.Join(errs...)
}

// Close closes all nodes.
func (ns Cluster) Close() error {
	var errs []error
	for _, n := range ns {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}
