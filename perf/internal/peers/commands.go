package peers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"ironspan/perf/internal/raw"
	"ironspan/perf/internal/servers"
)

// rawPort is where raw-serve listens.
const rawPort = "4555"

// Commands are what runs in servers, below the command that servers.Inside names. Those that serve say so on a line of
// their own and go on until their input ends.
type Commands struct {
	Nvmet       nvmetCmd       `cmd:""`
	NbdServer   nbdServerCmd   `cmd:""`
	SwapNvme    swapNVMeCmd    `cmd:""`
	SwapNbd     swapNBDCmd     `cmd:""`
	Touch       touchCmd       `cmd:""`
	MigrateTo   migrateToCmd   `cmd:""`
	MigrateFrom migrateFromCmd `cmd:""`
	RawServe    rawServeCmd    `cmd:""`
	RawMeasure  rawMeasureCmd  `cmd:""`
}

// untilEOF says that this process serves, and returns when its input, or the context, ends.
func untilEOF(ctx context.Context, stdout io.Writer) func() {
	return func() {
		fmt.Fprintln(stdout, servers.Ready)
		eof := make(chan struct{})
		go func() {
			io.Copy(io.Discard, os.Stdin)
			close(eof)
		}()
		select {
		case <-eof:
		case <-ctx.Done():
		}
	}
}

// answer prints what a command found.
func answer(stdout io.Writer, v any, err error) error {
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(v)
}

type nvmetCmd struct {
	Addr string `arg:""`
}

func (c *nvmetCmd) Run(ctx context.Context, stdout io.Writer) error {
	return nvmetServe(ctx, c.Addr, untilEOF(ctx, stdout))
}

type nbdServerCmd struct {
	Addr    string   `arg:""`
	Program []string `arg:"" passthrough:""`
}

func (c *nbdServerCmd) Run(ctx context.Context, stdout io.Writer) error {
	return nbdServe(ctx, program(c.Program), c.Addr, swapDisk, untilEOF(ctx, stdout))
}

// program is the words behind a "--".
func program(words []string) []string {
	if len(words) > 0 && words[0] == "--" {
		return words[1:]
	}
	return words
}

var overIt = touching{Set: swapSet, Limit: swapLimit, Accesses: accesses, Span: span}

type swapNVMeCmd struct {
	Addr string `arg:""`
}

func (c *swapNVMeCmd) Run(ctx context.Context, stdout io.Writer) error {
	got, err := swapped(ctx, func(undo *undo) (string, error) { return nvmeConnect(ctx, c.Addr, undo) })
	return answer(stdout, got, err)
}

type swapNBDCmd struct {
	Addr    string   `arg:""`
	Program []string `arg:"" passthrough:""`
}

func (c *swapNBDCmd) Run(ctx context.Context, stdout io.Writer) error {
	got, err := swapped(ctx, func(undo *undo) (string, error) { return nbdConnect(ctx, program(c.Program), c.Addr, undo) })
	return answer(stdout, got, err)
}

// swapped attaches a device, swaps on it, and detaches it.
func swapped(ctx context.Context, attach func(*undo) (string, error)) (t *Touched, err error) {
	undo := &undo{}
	defer func() { err = undo.all(err) }()
	device, err := attach(undo)
	if err != nil {
		return nil, err
	}
	return swapOn(ctx, device, overIt)
}

type touchCmd struct {
	Set      int64         `arg:""`
	Accesses int           `arg:""`
	Span     time.Duration `arg:""`
}

func (c *touchCmd) Run(ctx context.Context, stdout io.Writer) error {
	got, err := touch(ctx, c.Set, c.Accesses, c.Span)
	return answer(stdout, got, err)
}

type migrateToCmd struct {
	Addr    string   `arg:""`
	Program []string `arg:"" passthrough:""`
}

func (c *migrateToCmd) Run(ctx context.Context, stdout io.Writer) error {
	got, err := migrateTo(ctx, program(c.Program), c.Addr, untilEOF(ctx, stdout))
	return answer(stdout, got, err)
}

type migrateFromCmd struct {
	Addr    string   `arg:""`
	Program []string `arg:"" passthrough:""`
}

func (c *migrateFromCmd) Run(ctx context.Context, stdout io.Writer) error {
	got, err := migrateFrom(ctx, program(c.Program), c.Addr)
	return answer(stdout, got, err)
}

type rawServeCmd struct {
	Addr string `arg:""`
}

func (c *rawServeCmd) Run(ctx context.Context, stdout io.Writer) error {
	return raw.Serve(ctx, c.Addr, "", func() { fmt.Fprintln(stdout, servers.Ready) })
}

type rawMeasureCmd struct {
	Addr string `arg:""`
}

func (c *rawMeasureCmd) Run(ctx context.Context, stdout io.Writer) error {
	got, err := raw.Measure(ctx, c.Addr, "", raw.Plans())
	return answer(stdout, got, err)
}
