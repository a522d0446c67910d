// Loads each table into one unit, sends all 65,536 FP16 codes through it, and counts the results that are not expected.
// Plus arguments: +gaps leaves cycles without an input between, at random; +results writes all to results.hex.

module bench;
    reg         clk = 0, rst = 1, load = 0, in_valid = 0;
    reg  [1:0]  load_kind;
    reg  [15:0] load_index;
    reg  [31:0] load_data;
    reg  [15:0] in;
    wire        out_valid;
    wire [15:0] out;
    @UNIT@ unit (
        .clk(clk), .rst(rst), .load(load), .load_kind(load_kind), .load_index(load_index), .load_data(load_data),
        .in_valid(in_valid), .in(in), .out_valid(out_valid), .out(out)
    );
    always #5 clk = !clk;

    reg [51:0] words [0:@WORDS@-1];  // kind (4 bits), index (16), data (32)
    reg [15:0] expected [0:65535];
    integer sent, answered, wrong, cycle, first_sent, first_answered, last_answered, results, word;
    reg gaps, write;

    task load_table;
        begin
            for (word = 0; word < @WORDS@; word = word + 1) begin
                @(negedge clk);
                load = 1;
                load_kind = words[word][49:48];
                load_index = words[word][47:32];
                load_data = words[word][31:0];
            end
            @(negedge clk);
            load = 0;
        end
    endtask

    task check;
        begin
            if (answered == 0) first_answered = cycle;
            last_answered = cycle;
            if (write) $fdisplay(results, "%h", out);
            if (out !== expected[answered]) begin
                wrong = wrong + 1;
                if (wrong <= 10) $display("input %h: got %h, expected %h", answered[15:0], out, expected[answered]);
            end
            answered = answered + 1;
        end
    endtask

    task run(input [8*64-1:0] name);
        begin
            load_table;
            sent = 0;
            answered = 0;
            wrong = 0;
            for (cycle = 0; answered < 65536 && cycle < 200000; cycle = cycle + 1) begin
                @(negedge clk);
                if (out_valid) check;
                in_valid = sent < 65536 && !(gaps && $random % 4 == 0);
                in = in_valid ? sent : 16'hxxxx;
                if (in_valid && sent == 0) first_sent = cycle;
                if (in_valid) sent = sent + 1;
            end
            $display("%0s: inputs %0d, results %0d, mismatches %0d, latency %0d, cycles %0d", name, sent, answered, wrong,
                     first_answered - first_sent, last_answered - first_answered + 1);
        end
    endtask

    initial begin
        gaps = $test$plusargs("gaps");
        write = $test$plusargs("results");
        if (write) results = $fopen("results.hex");
        repeat (2) @(negedge clk);
        rst = 0;
@RUNS@
        if (write) $fclose(results);
        $finish;
    end
endmodule
