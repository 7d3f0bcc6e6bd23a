package micro

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"ironspan/engine/mininode"
	"ironspan/engine/wire"
	"ironspan/fastpath"
	"ironspan/fastpath/ram"
	"ironspan/fastpath/uffd"
	"ironspan/perf/internal/result"
)

// floors are what the kernel's mechanism takes by itself: a guest's access to a missing page, a thread that reads the
// fault from the userfaultfd and answers with UFFDIO_COPY, and nothing else. The thread waits in poll, or looks all the
// time.
func floors(c Scale) []*Bench {
	return []*Bench{floor(c, fastpath.Event), floor(c, fastpath.Busy)}
}

func floor(c Scale, poll fastpath.PollMode) *Bench {
	const name = "floor/userfault"
	labels := result.Labels{"poll": poll.String()}
	return &Bench{
		Name:  result.Key(name, labels),
		Alone: true,
		Trial: func() *Trial {
			t := &Trial{
				Data: c.Pages, Batches: c.Batches + 1, Config: mininode.Config{Nodes: 2, Plain: true, Poll: poll},
				VCPUs: inTurn(1, phase{0, func(w *writer) { w.touch(read, w.trial.data(1, 0), c.Pages, 1, true) }}),
			}
			var f *filler
			t.Prepare = func(s *share) (func(), error) {
				var err error
				if f, err = newFiller(s.nodes[0].RAM, poll); err != nil {
					return nil, err
				}
				return func() {
					if err := f.close(); err != nil {
						s.fail(err)
					}
				}, nil
			}
			t.Meet = func(s *share, meeting int) { // all pages are missing again
				first := wire.PFN(t.data(1, 0) / wire.PageSize)
				for page := first; meeting > 0 && page < first+wire.PFN(c.Pages); page++ {
					if errno := s.nodes[0].RAM.Discard(page); errno != 0 {
						s.fail(fmt.Errorf("micro: discard page %d: %w", page, errno))
						return
					}
				}
			}
			t.Collect = func(_ *share, o *Outcome) { o.Values = []float64{float64(f.served)} }
			return t
		},
		Record: func(r *Round, o *Outcome) error {
			want := c.Pages * (c.Batches + 1)
			if len(o.Values) != 1 || int(o.Values[0]) < want {
				return fmt.Errorf("micro: %v faults of %d pages", o.Values, want)
			}
			r.Latency(name, labels, warm(o.Samples[0], c.Batches+1))
			return nil
		},
	}
}

// filler is a thread that gives a page to each fault.
type filler struct {
	ram    *ram.RAM
	u      *uffd.FD
	page   *ram.Slots
	wake   int // eventfd
	busy   bool
	served int
	err    error
	done   chan struct{}
}

func newFiller(memory *ram.RAM, poll fastpath.PollMode) (_ *filler, err error) {
	f := &filler{ram: memory, wake: -1, busy: poll == fastpath.Busy, done: make(chan struct{})}
	defer func() {
		if err != nil {
			close(f.done)
			err = errors.Join(err, f.close())
		}
	}()
	if f.u, err = uffd.Open(); err != nil {
		return nil, err
	}
	if err := memory.Register(f.u, 0, 1, 9); err != nil {
		return nil, err
	}
	if f.page, err = ram.NewSlots(1); err != nil {
		return nil, err
	}
	for i := range f.page.Page(0) {
		f.page.Page(0)[i] = byte(i)
	}
	if f.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("micro: eventfd: %w", err)
	}
	go f.run()
	return f, nil
}

func (f *filler) run() {
	defer close(f.done)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var events [16]uffd.Event
	fds := []unix.PollFd{{Fd: int32(f.u.FD()), Events: unix.POLLIN}, {Fd: int32(f.wake), Events: unix.POLLIN}}
	var count [8]byte
	for {
		n, errno := f.u.Read(events[:])
		if errno != 0 {
			f.err = fmt.Errorf("micro: read faults: %w", errno)
			return
		}
		for _, e := range events[:n] {
			errno := f.u.Copy(e.Addr&^(wire.PageSize-1), f.page.Addr(0), wire.PageSize, false)
			if errno != 0 && errno != unix.EEXIST {
				f.err = fmt.Errorf("micro: copy a page: %w", errno)
				return
			}
			f.served++
		}
		if n > 0 {
			continue
		}
		if f.busy {
			if _, err := unix.Read(f.wake, count[:]); err == nil {
				return
			}
			continue
		}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			f.err = fmt.Errorf("micro: poll: %w", err)
			return
		}
		if fds[1].Revents != 0 {
			return
		}
	}
}

// close ends the thread and frees what it used. Whoever waits for a page is woken.
func (f *filler) close() error {
	if f.wake >= 0 {
		_, _ = unix.Write(f.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // readable from now on
	}
	<-f.done
	errs := []error{f.err}
	if f.u != nil {
		errs = append(errs, f.u.Close())
	}
	if f.page != nil {
		errs = append(errs, f.page.Close())
	}
	if f.wake >= 0 {
		errs = append(errs, unix.Close(f.wake))
	}
	return errors.Join(errs...)
}
